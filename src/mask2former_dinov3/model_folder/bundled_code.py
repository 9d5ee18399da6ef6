"""A model folder that carries its own code: usable with `trust_remote_code=True` where this package is not installed.

transformers takes such code from one flat folder, whose modules import each other as `from .name import ...`. So the
modules that the classes need are written side by side, their relative imports in that form and nothing else changed.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..errors import CheckpointError
from ..version import __version__

PACKAGE = Path(__file__).parents[1]
LICENSE_FILE = "CODE_LICENSE.txt"  # of the code: a LICENSE in a model folder would be taken for that of the weights
MODEL = "modeling.Mask2FormerDinov3ForInstanceSegmentation"
# What is added to the two files of a model folder, so that transformers finds a class for each of its Auto classes.
ENTRIES: dict[str, dict[str, Any]] = {
    "config.json": {
        "auto_map": {
            "AutoConfig": "configuration.Mask2FormerDinov3Config",
            "AutoModelForImageSegmentation": MODEL,
            "AutoModelForUniversalSegmentation": MODEL,
        },
        "custom_pipelines": {
            "instance-segmentation": {
                "impl": "pipeline.InstanceSegmentationPipeline",
                "pt": ["AutoModelForUniversalSegmentation"],
                "type": "image",
            }
        },
    },
    "preprocessor_config.json": {
        "auto_map": {"AutoImageProcessor": "image_processing.Mask2FormerDinov3ImageProcessor"},
        # Else the stock pipelines look for one beside the image processor, and first ask whether they may run the code.
        "video_processor_type": "none",
    },
}
# What the model card then says too.
USAGE = """## Use without the package

This folder carries its code, so it needs `pip install torch "transformers>=5.23" scipy pillow opencv-python-headless
faster-coco-eval` and no more:

```python
from transformers import pipeline

model = "."  # this folder, or the id of its repository: "user/name"
segment = pipeline("instance-segmentation", model=model, trust_remote_code=True)
print(segment("image.jpg"))
```
"""
ROOTS = ("model/configuration.py", "model/modeling.py", "inference/image_processing.py", "pipeline.py")


def write_code(folder: Path) -> None:
    """Add the code of its classes to a model folder: modules, their licence, and the entries that lead to them.

    What is there already is brought up to date. Raises CheckpointError, before anything is written, when `folder` is no
    model folder of ours.
    """
    stored = {name: _read(folder / name) for name in ENTRIES}
    kind = stored["config.json"].get("model_type")
    if kind != "mask2former_dinov3":
        raise CheckpointError(f"{folder}: expected a model of type mask2former_dinov3, config.json says {kind!r}")
    for name, text in flat_modules().items():
        write_text(folder / f"{name}.py", text)
    shutil.copyfile(Path(__file__).with_name(LICENSE_FILE), folder / LICENSE_FILE)
    card = folder / "README.md"
    if card.is_file() and USAGE not in (text := card.read_text(encoding="utf-8")):
        write_text(card, text.rstrip("\n") + f"\n\n{USAGE}")
    for name, entries in ENTRIES.items():
        write_text(folder / name, json.dumps(stored[name] | entries, indent=2, sort_keys=True) + "\n")


def flat_modules() -> dict[str, str]:
    """The text of every module that travels, by its name in the flat folder."""
    texts: dict[str, str] = {}
    waiting = [PACKAGE / root for root in ROOTS]
    files: dict[str, Path] = {}
    while waiting:
        file = waiting.pop()
        assert files.setdefault(file.stem, file) == file, f"two modules named {file.stem} cannot lie in one folder"
        if file.stem not in texts:
            texts[file.stem], needed = _flattened(file)
            waiting += needed
    return texts


def _flattened(file: Path) -> tuple[str, list[Path]]:
    """A module with its relative imports in the form `from .name import ...`, and the modules that these name."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    relative = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    needed: list[Path] = []
    for node in sorted(relative, key=lambda node: -node.lineno):  # from the end, so that line numbers stay true
        wanted: dict[Path, list[str]] = {}
        place = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            wanted.setdefault(_defining(place, alias.name), []).append(ast.unparse(alias))
        lines[node.lineno - 1 : node.end_lineno] = [
            f"{' ' * node.col_offset}from .{source.stem} import {', '.join(names)}\n"
            for source, names in wanted.items()
        ]
        needed += wanted
    origin = f"{file.relative_to(PACKAGE).as_posix()} of mask2former-dinov3 {__version__}"
    return f"# {origin}, MIT licence ({LICENSE_FILE}). Written with the model.\n" + "".join(lines), needed


def _defining(place: Path, name: str) -> Path:
    """The module that defines `name`: the one at `place`, or the one that the package there takes it from."""
    module = place.with_suffix(".py")
    if module.is_file():
        return module
    for node in ast.parse((place / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name in [alias.name for alias in node.names]:
            return place.joinpath(*(node.module or "").split(".")).with_suffix(".py")
    raise AssertionError(f"{place}: nothing there takes {name} from a module beside it")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file.parent}: expected a model folder as training leaves it, but {file.name} cannot be read ({error})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content
