"""The recipes that come with the package: JSON files of options, each for a kind of data and machine."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..json_files import read_json_object

_FOLDER = Path(__file__).parent.parent / "recipes"


def read_recipe(name: str) -> dict[str, object]:
    """The options of a recipe by its name (one of `presets.RECIPES`), with `description`."""
    return dict(read_json_object(_FOLDER / f"{name}.json", "a JSON object of options", raises=ConfigError))
