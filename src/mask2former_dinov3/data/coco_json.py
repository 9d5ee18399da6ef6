"""A COCO annotation file as JSON, and the numbers in it, which some tools write as strings or floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DatasetError


def load_json(path: Path) -> dict[str, Any]:
    """The object in a COCO file. Raises DatasetError when the file is missing, not JSON, or not an object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a text file in UTF-8, expected COCO annotations as JSON") from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); is the file complete?"
        ) from error
    except RecursionError as error:
        raise DatasetError(f"{path}: JSON nested too deeply to be COCO annotations") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: expected an object with images, annotations and categories, got a {type(content).__name__}"
        )
    return content
