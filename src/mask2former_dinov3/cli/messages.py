"""Errors as the command line shows them: options as typed, files with a reason in plain words, advice on memory."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import OptionError, UserError, memory_reason, system_reason
from ..json_files import read_json_object
from .parser import VerbParser, name_as_typed

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text for a terminal: what would move its cursor, change its colours or the direction of reading as escapes.

    Names of files, classes and keys come from files of others.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object) -> None:
    """Print a result."""
    print(visible(str(text)), flush=True)


def complain(message: str) -> None:
    """Print to stderr, so that the output of a command can be piped."""
    print(visible(message), file=sys.stderr, flush=True)


class VisibleFormatter(logging.Formatter):
    """Formats lines of the log as `visible` texts."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def describe_error(error: UserError | OSError, parser: VerbParser, config: str | None) -> str:
    """What follows "error: ". config: the JSON file of `train`, whose keys are options too."""
    if isinstance(error, OptionError):
        return f"{locate_option(error.option, parser, config)}: {error.reason}"
    return describe_os_error(error) if isinstance(error, OSError) else str(error)


def locate_option(option: str, parser: VerbParser, config: str | None) -> str:
    """The option as the user wrote it: a flag, a positional argument, or "FILE: key" of the JSON file."""
    name = name_as_typed(option, parser)
    if name == option and config is not None and option in _keys_of(config):
        return f"{config}: {option}"
    return name


def _keys_of(config: str) -> Mapping[str, object]:
    try:
        return read_json_object(Path(config))
    except UserError:  # it has been read before; gone by now
        return {}


def describe_os_error(error: OSError) -> str:
    """The files of the error and the reason of the operating system, such as "a.json: permission denied"."""
    if error.strerror is None:  # raised by a library, with a message of its own
        return str(error) or "the operating system refused the operation"
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{files}: {system_reason(error)}" if files else system_reason(error)


def describe_out_of_memory(error: RuntimeError | MemoryError, parser: VerbParser) -> str:
    """The first line of the library's message, and the options of this verb that need less memory."""
    advice = ", or ".join(parser.memory_advice) or "free memory on the device"
    return f"out of memory on the device: {memory_reason(error)}; {advice}"
