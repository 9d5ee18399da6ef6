"""Add code to a model folder, so that it works with `trust_remote_code=True` where this package is not installed.

transformers expects the modules in one flat folder, importing each other as `from .name import ...`. The modules that
the model's classes need are therefore written side by side, with their relative imports rewritten to that form.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..errors import CheckpointError
from ..json_files import read_json_object
from ..version import __version__
from .contents import check_model_folder
from .transformers_version import NEEDED_TRANSFORMERS

PACKAGE = Path(__file__).parents[1]
CODE_LICENSE_FILE = "CODE_LICENSE.txt"  # a file named LICENSE would be taken for the licence of the weights
CODE_LICENSE_TEXT = Path(__file__).with_name(CODE_LICENSE_FILE)
MODEL = "modeling.Mask2FormerDinov3ForInstanceSegmentation"
# Entries by which transformers finds the classes, added to these files of the model folder.
ENTRIES: dict[str, dict[str, Any]] = {
    "config.json": {
        "auto_map": {
            "AutoConfig": "configuration.Mask2FormerDinov3Config",
            "AutoModel": MODEL,
            "AutoModelForImageSegmentation": MODEL,
            "AutoModelForInstanceSegmentation": MODEL,
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
        # Without it the stock pipelines look for a video processor, and ask whether they may run the code for that.
        "video_processor_type": "none",
    },
}
# Section that is added to the model card.
USAGE = f"""## Use without the package

This folder carries its code, so it needs `pip install torch "transformers>={NEEDED_TRANSFORMERS}" scipy pillow
opencv-python-headless faster-coco-eval` and no more:

```python
from transformers import pipeline

model = "."  # this folder, or the id of its repository: "user/name"
segment = pipeline("instance-segmentation", model=model, trust_remote_code=True)
print(segment("image.jpg"))
```
"""
ROOTS = ("model/configuration.py", "model/modeling.py", "inference/image_processing.py", "pipeline.py")
VERSION_CHECK = "model_folder/transformers_version.py"


def write_code(folder: Path) -> None:
    """Add the code of the model's classes to its folder: modules, their licence, and the entries that name them.

    Code that the folder has already is replaced. Raises CheckpointError, before anything is written, when `folder` is
    not a model folder of this package.
    """
    check_model_folder(folder, tuple(ENTRIES))
    stored = {name: read_json_object(folder / name, raises=CheckpointError) for name in ENTRIES}
    for name, text in flat_modules().items():
        write_text(folder / f"{name}.py", text)
    shutil.copyfile(CODE_LICENSE_TEXT, folder / CODE_LICENSE_FILE)
    card = folder / "README.md"
    if card.is_file() and USAGE not in (text := card.read_text(encoding="utf-8")):
        write_text(card, text.rstrip("\n") + f"\n\n{USAGE}")
    for name, entries in ENTRIES.items():
        write_text(folder / name, json.dumps(stored[name] | entries, indent=2, sort_keys=True) + "\n")


def flat_modules() -> dict[str, str]:
    """Text of every bundled module by its name in the flat folder."""
    texts: dict[str, str] = {}
    needed: dict[str, list[str]] = {}  # the modules that each module imports
    waiting = [PACKAGE / root for root in (*ROOTS, VERSION_CHECK)]
    files: dict[str, Path] = {}
    while waiting:
        file = waiting.pop()
        assert files.setdefault(file.stem, file) == file, f"two modules named {file.stem} cannot lie in one folder"
        if file.stem not in texts:
            texts[file.stem], imported = _flatten(file)
            needed[file.stem] = [one.stem for one in imported]
            waiting += imported
    for root in ROOTS:
        name = Path(root).stem
        texts[name] = _for_old_versions(texts[name], _all_needed(name, needed))
    return texts


def _for_old_versions(text: str, needed: list[str]) -> str:
    """A module that transformers loads first, with the check of its version, made to be reached in older versions too.

    needed: all modules below it. Versions before 5 copy only those that the file itself names, before they run it.
    """
    start = "from __future__ import annotations\n"
    check = Path(VERSION_CHECK).stem
    assert text.count(start) == 1, "the check must be the first import"
    text = text.replace(start, f"{start}\nfrom .{check} import NEEDED_TRANSFORMERS\n")
    names = "".join(f"    from .{name} import __name__\n" for name in needed)
    return (
        f"{text}\nif False:  # not run: transformers 4 copies only the modules that are named here\n{names}"
        if names
        else text
    )


def _all_needed(name: str, needed: Mapping[str, list[str]]) -> list[str]:
    """The modules that a module imports, and those that they import, sorted."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(needed[waiting.pop()]) - found - {name}
        found |= new
        waiting += new
    return sorted(found)


def _flatten(file: Path) -> tuple[str, list[Path]]:
    """Rewrite a module's relative imports to `from .name import ...`; also returns the modules that they name."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    relative = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    needed: list[Path] = []
    for node in sorted(relative, key=lambda node: -node.lineno):  # from the end, so that line numbers stay valid
        wanted: dict[Path, list[str]] = {}
        place = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            wanted.setdefault(_find_definition(place, alias.name), []).append(ast.unparse(alias))
        lines[node.lineno - 1 : node.end_lineno] = [
            f"{' ' * node.col_offset}from .{source.stem} import {', '.join(names)}\n"
            for source, names in wanted.items()
        ]
        needed += wanted
    origin = f"{file.relative_to(PACKAGE).as_posix()} of mask2former-dinov3 {__version__}"
    return f"# {origin}, MIT licence ({CODE_LICENSE_FILE}). Written with the model.\n" + "".join(lines), needed


def _find_definition(place: Path, name: str) -> Path:
    """Find the module that defines `name`: the one at `place`, or the one that the package there imports it from."""
    module = place.with_suffix(".py")
    if module.is_file():
        return module
    for node in ast.parse((place / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name in [alias.name for alias in node.names]:
            return place.joinpath(*(node.module or "").split(".")).with_suffix(".py")
    raise AssertionError(f"{place}: its __init__.py imports {name} from no module beside it")
