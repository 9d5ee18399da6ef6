"""Errors that a user can mend; every message says where, what was expected, what was found, and what to do.

ValueError
└── UserError            base: the command line prints its message without a traceback and exits with 1
    ├── ConfigError      an option, a config file, or a combination of options
    ├── DatasetError     annotations, images, or predictions to be scored
    ├── CheckpointError  weights, a model folder, or a checkpoint to resume from
    └── HubError         the Hugging Face hub: its answer, or the way to it
"""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used as it is."""


class ConfigError(UserError):
    """One or more options are wrong; the message lists all of them."""


class DatasetError(UserError):
    """A data set, an image, or a predictions file cannot be used."""


class CheckpointError(UserError):
    """Weights or a checkpoint cannot be found, read, or used."""


class HubError(UserError):
    """The Hugging Face hub cannot be reached, or refuses what was asked of it."""
