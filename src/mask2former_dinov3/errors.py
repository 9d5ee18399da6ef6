"""Errors that a user can fix; every message says where, what was expected, what was found, and what to do.

ValueError
└── UserError                base: the command line prints its message without a traceback and exits with 1
    ├── ConfigError          an option, a config file, or a combination of options
    │   ├── OptionError      the value of one option; the command line names it as the user typed it
    │   └── MissingExtraError  a package that an option or a verb needs is not installed
    ├── DatasetError         annotations, images, or predictions to be scored
    ├── CheckpointError      weights, a model folder, or a checkpoint to resume from
    └── HubError             the Hugging Face hub: its answer, or the connection to it

Any other exception is an error in this package; the command line shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

SharedError = TypeVar("SharedError", bound=BaseException)
_SHARED = "is_raised_on_all_processes"  # an attribute of the exception


class UserError(ValueError):
    """Something the user gave cannot be used as it is."""


class ConfigError(UserError):
    """One or more options are wrong; the message lists all of them."""


class OptionError(ConfigError):
    """The value of one option is wrong.

    option: its name in Python, such as `max_detections`. The command line replaces it in the message by what the user
    typed, such as `--max-detections`, or by the name of the positional argument.
    """

    def __init__(self, option: str, expected: str, got: object, advice: str = "") -> None:
        super().__init__(option, expected, got, advice)  # all of them, so that the error survives pickling
        self.option = option
        self.reason = mismatch(expected, got, advice)

    def __str__(self) -> str:
        return f"{self.option}: {self.reason}"


class MissingExtraError(ConfigError):
    """An optional package is needed and not installed; see `extras`."""


class DatasetError(UserError):
    """A data set, an image, or a predictions file cannot be used."""


class CheckpointError(UserError):
    """Weights or a checkpoint cannot be found, read, or used."""


class HubError(UserError):
    """The Hugging Face hub cannot be reached, or refuses the request."""


def mark_shared(error: SharedError) -> SharedError:
    """Note on an error that all processes of a run raise it, or one that stands for it; returns it."""
    vars(error)[_SHARED] = True
    return error


def is_shared(error: BaseException) -> bool:
    """Whether all processes of a run raise this error: exchanges between them still work, and one of them shows it."""
    return getattr(error, _SHARED, False)


_CPU_ALLOCATOR = "DefaultCPUAllocator: "  # how torch begins the message of a plain RuntimeError on the CPU


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, on a GPU (torch's own class, not imported here) or on the CPU."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or f"{_CPU_ALLOCATOR}can't allocate memory" in str(error)
    return of_torch or isinstance(error, MemoryError)


def memory_reason(error: BaseException) -> str:
    """The first line of the message of an error that `is_out_of_memory`."""
    return str(error).partition("\n")[0].rpartition(_CPU_ALLOCATOR)[2] or "no memory left"


def mismatch(expected: str, got: object, advice: str = "") -> str:
    """The one wording of every error message: "expected …, got …; advice"."""
    return f"expected {expected}, got {got}" + (f"; {advice}" if advice else "")


def system_reason(error: OSError) -> str:
    """The reason in the words of the operating system, such as "file exists"; of a library's own error its message."""
    return error.strerror[:1].lower() + error.strerror[1:] if error.strerror else str(error)


def suggest(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about an unknown name: "nearest is …", or `otherwise` when no known name is near."""
    bare = {one.lstrip("-"): one for one in known}  # the dashes that all flags share make none of them similar
    near = difflib.get_close_matches(name.lower().lstrip("-"), list(bare), n=1, cutoff=0.6)
    return f"nearest is {bare[near[0]]}" if near else otherwise
