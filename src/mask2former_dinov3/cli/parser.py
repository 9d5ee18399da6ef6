"""Parsing of a verb's words: both spellings of every option, and argparse's errors in the wording of this package."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from ..errors import mismatch, suggest

SPELLING = "Options may be written with dashes or with underscores: --some-option or --some_option."


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb, or of the whole command.

    appendix: text at the end of the help, made when it is asked for. verbs: the parsers of the verbs, for the whole
    command. words: what the user typed after the verb, for error messages. memory_advice: what to do when the device
    runs out of memory.
    """

    appendix: Callable[[], str] | None = None
    verbs: Mapping[str, VerbParser] = MappingProxyType({})
    words: Sequence[str] = ()
    memory_advice: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """The options as the help shows them, such as "--batch-size"."""
        return [option for option in self._option_string_actions if option.startswith("--")]

    def format_help(self) -> str:
        return super().format_help() + (self.appendix() if self.appendix else "")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with 2. message: from argparse or from this package."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {reword(message, self)}\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exit with 2, naming the words that the verb does not know."""
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        lines = [f"{flag}: unknown option; {suggest_option(flag, self)}" for flag in flags]
        shown = " ".join(word or '""' for word in unknown)
        lines = lines or [f"{shown}: expected no further argument"]
        self.error(lines[0] if len(lines) == 1 else f"{len(lines)} errors on the command line\n  " + "\n  ".join(lines))


def parse_words(parser: VerbParser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a whole command line, and the words that the verb does not know."""
    verb = parser.verbs.get(words[0]) if words else None
    if verb is not None:
        verb.words = words[1:]
        words = [words[0], *write_with_dashes(verb.words, verb.options)]
    return parser.parse_known_args(words)


def write_with_dashes(words: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """`words` with every option in the spelling that is `known`; values and other words stay as they are."""
    options_end = False
    for word in words:
        options_end |= word == "--"
        flag, equals, value = word.partition("=")
        dashed = flag.replace("_", "-")
        yield dashed + equals + value if dashed in known and not options_end else word


def find_empty_value(parser: VerbParser) -> str | None:
    """The option or positional argument, by its name in Python, that was given an empty text; None for none.

    An empty text is a value of no option of any verb but `train`, and as a path it would be the current folder.
    """
    takes_value: str | None = None  # the option before the word
    for word in write_with_dashes(parser.words, parser.options):
        flag, equals, value = word.partition("=")
        action = parser._option_string_actions.get(flag)
        if action is not None and equals and not value:
            return action.dest
        if not word:
            positional = next((one.dest for one in parser._actions if not one.option_strings), None)
            return takes_value or positional
        takes_value = action.dest if action is not None and action.nargs != 0 and not equals else None
    return None


def name_as_typed(option: str, parser: VerbParser) -> str:
    """How the user wrote the option that Python calls `option`; one that was not given, as the help shows it.

    An option by its flag, a positional argument by the name in the help; anything else stays as it is.
    """
    flags = [word.partition("=")[0] for word in parser.words if word.startswith("--")]
    typed = [flag for flag in flags if flag[2:].replace("-", "_") == option]
    if typed:
        return typed[-1]
    for action in parser._actions:
        if action.dest == option:
            return action.option_strings[0] if action.option_strings else str(action.metavar)
    return option


def reword(message: str, parser: VerbParser) -> str:
    """An error message of argparse in our wording; any other message stays as it is."""
    if missing := re.fullmatch(r"the following arguments are required: (.+)", message):
        return f"{missing[1]}: required; see `{parser.prog} --help`"
    found = re.fullmatch(r"argument (\S+): (.+)", message, re.DOTALL)
    if found is None:
        return message
    name, reason = found[1], found[2]
    if choice := re.fullmatch(r"invalid choice: (.+) \(choose from (.+)\)", reason):
        got = choice[1].strip("'\"")
        advice = suggest(got, parser.verbs, "") if parser.verbs else ""
        reason = mismatch(f"one of {choice[2]}".replace("'", ""), quote_text(got), advice)
    elif reason == "expected one argument":
        reason = mismatch("a value", "none")
    elif count := re.fullmatch(r"expected (\d+) arguments", reason):
        reason = mismatch(f"{count[1]} values", "fewer")
    elif other := re.fullmatch(r"not allowed with argument (\S+)", reason):
        reason = f"cannot be combined with {name_as_typed(other[1][2:].replace('-', '_'), parser)}"
    elif value := re.fullmatch(r"ignored explicit argument (.+)", reason):
        reason = mismatch("no value", value[1].replace("'", '"'))
    return f"{name_as_typed(name[2:].replace('-', '_'), parser) if name.startswith('--') else name}: {reason}"


def suggest_option(flag: str, parser: VerbParser) -> str:
    """What to do about an unknown option of a verb."""
    return suggest(flag.replace("_", "-"), parser.options, f"see `{parser.prog} --help`")


def quote_text(text: str) -> str:
    """A number as it is, any other text in quotes."""
    try:
        float(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return text


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(mismatch("a whole number above 0", quote_text(text)))
    return int(text)


def not_negative(text: str) -> int:
    """A whole number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(mismatch("a whole number of at least 0", quote_text(text)))
    return int(text)


def real_number(text: str) -> float:
    """A number, for argparse; its range is checked where it is used."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(mismatch("a number", quote_text(text))) from error
