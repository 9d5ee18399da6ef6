"""Options as text: read from a JSON file and from the words of a command line, with what is wrong about them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ..errors import ConfigError, OptionError, mismatch, suggest
from ..json_files import read_json_object
from .legacy_options import translate_old_options
from .presets import AUTO_BATCH, DEFAULT_BATCH, LARGEST_QUERIES

COMMAND_LINE = "on the command line"
SHORT_FLAGS = {"--compile": "torch_compile"}  # the flag that other verbs have


class OptionFault(NamedTuple):
    """One line of the report. place: "in FILE", "on the command line", or empty. option: as the user wrote it."""

    place: str
    option: str
    reason: str


class GivenOptions:
    """The options of a JSON file and of overrides, merged under today's names, and the faults found so far.

    fields: the valid options. values: option -> value. notes: for the user.
    """

    def __init__(
        self, fields: Mapping[str, FieldInfo], path: str | Path | None, overrides: Mapping[str, object] | Sequence[str]
    ) -> None:
        """Raises ConfigError when the file is not a JSON object."""
        self.values: dict[str, object] = {}
        self.notes: list[str] = []
        self.faults: list[OptionFault] = []
        self._path = path
        self.replaced: dict[str, object] = {}  # option -> its value in the file, where an override has another
        self._has_flags = not isinstance(overrides, Mapping)
        self._written: dict[str, tuple[str, str]] = {}  # option -> its place, and how the user wrote it
        self._without_value: set[str] = set()  # flags without a value, which is true only for switches
        if path is not None:
            content = read_json_object(Path(path), "a JSON object of options", raises=ConfigError, unique_keys=True)
            self._add(content, {key: key for key in content}, f"in {path}", fields)
        if isinstance(overrides, Mapping):
            self._add(overrides, {key: key for key in overrides}, "", fields)
        else:
            nullable = [name for name, field in fields.items() if allows_null(field.annotation)]
            given, flags, stray = read_flags(overrides, nullable)
            self.faults += [OptionFault(COMMAND_LINE, word, mismatch("--key value", "no option")) for word in stray]
            self._add(given, flags, COMMAND_LINE, fields)
            bare = {name for name, value in given.items() if value is True} & fields.keys()
            self._without_value = {name for name in bare if "bool" not in str(fields[name].annotation)}

    def _add(
        self, source: Mapping[str, object], written: Mapping[str, str], place: str, known: Collection[str]
    ) -> None:
        """Merge one source over those before it. written: key of `source` -> how the user wrote it."""
        translated, notes, faults = translate_old_options(source, write_flag if place == COMMAND_LINE else str)
        self.notes += notes
        self.faults += [OptionFault(place, written[key], reason) for key, reason in faults.items()]
        for key, value in translated.items():
            word = written.get(key) or (write_flag(key) if place == COMMAND_LINE else key)
            if key in known:
                if key in self.values:
                    self.replaced[key] = self.values[key]
                self.values[key] = value
                self._written[key] = place, word
            else:
                self.faults.append(OptionFault(place, word, explain_unknown(key, word, known)))

    def name(self, option: str) -> str:
        """The option as the user wrote it; one that was not given, as it would be written."""
        if option in self._written:
            return self._written[option][1]
        return write_flag(option) if self._path is None and self._has_flags else option

    def is_beside(self, option: str, other: str) -> bool:
        """Whether an option was given where another one was, or after it: a flag goes before the file."""
        place, other_place = self._written.get(option, ("", ""))[0], self._written.get(other, ("", ""))[0]
        return option in self._written and (place == other_place or not place.startswith("in "))

    def is_flag(self, option: str) -> bool:
        """Whether the option was given on the command line."""
        return self._written.get(option, ("", ""))[0] == COMMAND_LINE

    def add_fault(self, option: str, reason: str) -> None:
        """Note what is wrong with the value of an option, or with its absence."""
        default = f"in {self._path}" if self._path is not None else COMMAND_LINE if self._has_flags else ""
        place, _ = self._written.get(option, (default, ""))
        given_none = option in self._without_value
        self.faults.append(OptionFault(place, self.name(option), mismatch("a value", "none") if given_none else reason))

    def raise_faults(self) -> None:
        """Raise ConfigError with all faults, if there are any: one on one line, several below a heading."""
        if len(self.faults) == 1:
            place, option, reason = self.faults[0]
            prefix = f"{self._path}: " if place.startswith("in ") else ""
            raise ConfigError(f"{prefix}{option}: {reason}")
        if self.faults:
            places = " and ".join(dict.fromkeys(fault.place for fault in self.faults if fault.place))
            heading = f"{len(self.faults)} errors {places or 'in the options'}"
            raise ConfigError("\n  ".join([heading, *(f"{option}: {reason}" for _, option, reason in self.faults)]))


def keep_images_per_step(given: GivenOptions) -> None:
    """Where the batch is "auto", say how many images a step has, unless an option beside it says so.

    As many as with the number that "auto" replaces: that of the file, or the default. A recipe brings its own.
    """
    batch, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
    if given.values.get(batch) != AUTO_BATCH or given.is_beside(accumulation, batch):
        return
    if given.values.get("recipe") and batch not in given.replaced and accumulation not in given.values:
        return
    numbers = given.replaced.get(batch, DEFAULT_BATCH), given.values.get(accumulation, 1)
    with suppress(ValueError):  # refused as a number of accumulation steps; that of the batch is not used
        given.values[accumulation] = math.prod(int(str(number)) for number in numbers)


def read_flags(words: Sequence[str], nullable: Collection[str]) -> tuple[dict[str, object], dict[str, str], list[str]]:
    """Words of a command line as options, each option's flag as it was typed, and the words that are no option.

    A flag without a value is true; `none` and `null` are JSON's null for the options in `nullable`.
    """
    given: dict[str, object] = {}
    flags: dict[str, str] = {}
    stray: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            stray.append(word)
            continue
        flag, equals, value = word.partition("=")
        key = SHORT_FLAGS.get(flag, flag[2:].replace("-", "_"))
        if not equals and rest and not rest[0].startswith("--"):
            value, equals = rest.pop(0), "="
        is_null = key in nullable and value.lower() in ("none", "null")
        given[key] = None if is_null else value if equals else True
        flags[key] = flag
    return given, flags, stray


def allows_null(annotation: object) -> bool:
    """Whether a field of this type may be None."""
    return type(None) in get_args(annotation)


def write_flag(key: str) -> str:
    """The flag of an option."""
    return f"--{key.replace('_', '-')}"


def write_bound(bound: float) -> str:
    """A bound of an option for people: 0.5, or 1,000,000."""
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def explain_unknown(key: str, word: str, known: Collection[str]) -> str:
    """Why an option is refused that does not exist, with the nearest one in the spelling of `word`."""
    is_flag = word.startswith("--")
    names = [write_flag(name) if "-" in word[2:] else f"--{name}" for name in known] if is_flag else list(known)
    kind = "option" if is_flag else "key"
    return f"unknown {kind}; {suggest(word, names, 'docs/configuration.md and `train --help` list all of them')}"


_EITHER = {
    "backbone_taps": "four block numbers such as 3,6,9,12, or null",
    "channels": 'channel numbers from 1 such as 3,2,1, "all", or null',
    "checkpointing_steps": 'a whole number above 0, "epoch", or null',
    "per_device_train_batch_size": 'a whole number above 0, or "auto"',
    "num_queries": f'a whole number from 1 to {LARGEST_QUERIES:,}, or "auto"',
}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "of at least",
    "less_than": "below",
    "less_than_equal": "of at most",
}


def explain_fault(item: ErrorDetails, annotation: object) -> str:
    """What pydantic reports of a field, in the words of a JSON file. annotation: the field's type."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return mismatch("the folder of the run", "none")  # output_dir is the only option without a default
    if kind == "value_error":
        error = context["error"]
        return error.reason if isinstance(error, OptionError) else str(error)
    if kind == "string_too_short":  # only the empty text is
        return mismatch("a value", "none")
    got = json.dumps(item["input"], default=str, ensure_ascii=False)
    option = str(item["loc"][0])
    if option in _EITHER:
        return mismatch(_EITHER[option], got)
    number = "a whole number" if "int" in str(annotation) else "a number"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a string"}
    if kind in _BOUNDS:
        bound = next(value for name, value in context.items() if name in ("gt", "ge", "lt", "le"))
        expected = f"{number} {_BOUNDS[kind]} {write_bound(bound)}"
    elif kind == "literal_error":
        values = str(context["expected"]).replace("'", "")
        expected = "one of " + (values.replace(" or ", ", ") if allows_null(annotation) else values)
    else:
        expected = words.get(kind.split("_")[0], item["msg"].removeprefix("Input should be ").lower())
    return mismatch(expected + " or null" * allows_null(annotation), got)
