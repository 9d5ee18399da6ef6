"""The tree of errors, and the one wording of their messages."""

from __future__ import annotations

import pickle

import pytest

from mask2former_dinov3 import errors
from mask2former_dinov3.errors import OptionError, UserError, mismatch, suggest
from mask2former_dinov3.extras import is_installed, require


def test_user_error__is_the_root_of_all() -> None:
    names = [name for name, value in vars(errors).items() if name.endswith("Error") and isinstance(value, type)]
    assert len(names) == 7
    for name in names:
        assert issubclass(getattr(errors, name), UserError), name
    assert issubclass(UserError, ValueError)


def test_option_error__names_the_option_and_survives_pickling() -> None:
    error = OptionError("tile", "at least 64 pixels", 3, "use larger tiles")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert str(one) == "tile: expected at least 64 pixels, got 3; use larger tiles"
        assert (one.option, one.reason) == ("tile", "expected at least 64 pixels, got 3; use larger tiles")
    assert mismatch("a", "b") == "expected a, got b"


def test_suggest__only_what_is_near() -> None:
    assert suggest("learning_rte", ["seed", "learning_rate"], "see the help") == "nearest is learning_rate"
    assert suggest("--learning_rte", ["--seed", "--learning_rate"], "see the help") == "nearest is --learning_rate"
    assert suggest("--class-weights", ["--image-height"], "see the help") == "see the help"
    assert suggest("xyz", ["seed", "learning_rate"], "see the help") == "see the help"


def test_require__names_what_is_missing_and_the_command() -> None:
    require("export", "export", "json", "pathlib")
    assert not is_installed("no_such_module")
    with pytest.raises(errors.MissingExtraError) as error:
        require("export", "export", "json", "no_such_module", "nor_this")
    assert str(error.value) == (
        "export needs no_such_module and nor_this, not installed here; "
        "run pip install 'mask2former-dinov3[export]' in this environment"
    )
