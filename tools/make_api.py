"""Write docs/api.md from the public names and their docstrings; with --check only say whether it is up to date."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
PACKAGE = "mask2former_dinov3"
# The public modules and their public names; of the package itself they are those of its `__all__`.
PUBLIC: dict[str, tuple[str, ...]] = {
    "weights": ("from_backbone", "from_mask2former"),
    "model_folder": ("write_code",),
    "visualize": ("draw_instances",),
    "pipeline": ("InstanceSegmentationPipeline",),
    "data.check": ("check_data", "Report"),
    "data.layout": ("find_splits", "Split"),
    "data.read_rules": ("ReadRules",),
    "data.coco": ("read_coco", "CocoData"),
    "data.dataset": ("CocoInstanceDataset", "collate"),
    "data.transforms": ("Augmentation",),
}
WIDTH = 110  # of a signature in one line

HEAD = """# Python API

<!-- Written by tools/make_api.py from the docstrings in src/mask2former_dinov3; edit those. -->

These names are public: what is not on this page may change in any release.
"""


class Annotation(str):
    """An annotation that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def without_quotes(annotation: object) -> object:
    return Annotation(annotation) if isinstance(annotation, str) else annotation


def signature(name: str, value: Callable[..., object]) -> str:
    """`name(parameters) -> result`, over several lines where it is long.

    Of a pydantic model `name(**options)`: docs/configuration.md lists them.
    Raises ValueError for a default that shows as an address, which differs from run to run.
    """
    if hasattr(value, "model_fields"):
        return f"{name}(**options)"
    found = inspect.signature(value)
    parameters = [
        one.replace(annotation=without_quotes(one.annotation))
        for one in found.parameters.values()
        if one.name not in ("self", "cls")
    ]
    is_class = isinstance(value, type)  # then the signature is that of __init__, which returns None
    result = inspect.Signature.empty if is_class else without_quotes(found.return_annotation)
    text = name + str(found.replace(parameters=parameters, return_annotation=result))
    if " at 0x" in text:
        raise ValueError(f"{name}: a default's text holds an address; give its class a __repr__: {text}")
    if len(text) <= WIDTH:
        return text
    inner = "".join(f"    {one},\n" for one in _with_marks(parameters))
    returns = "" if result is inspect.Signature.empty else f" -> {inspect.formatannotation(result)}"
    return f"{name}(\n{inner}){returns}"


def _with_marks(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """The parameters as text, with the `*` before those that are passed by name."""
    marked = False
    for one in parameters:
        marked = marked or one.kind is one.VAR_POSITIONAL
        if one.kind is one.KEYWORD_ONLY and not marked:
            marked = True
            yield "*"
        yield str(one)


def docstring(value: object) -> str:
    """The docstring as Markdown, or an empty string; the one that dataclasses generate counts as none."""
    text = inspect.cleandoc(getattr(value, "__doc__", None) or "")
    if dataclasses.is_dataclass(value) and text.startswith(f"{getattr(value, '__name__', '')}("):
        return ""
    # Outside of `code`, a star as in N*H*W would start italics.
    return "`".join(part if index % 2 else part.replace("*", r"\*") for index, part in enumerate(text.split("`")))


def members(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, signature and docstring of the class's own public methods and properties that have a docstring."""
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, property):
            found = docstring(member.fget)
            if found:
                yield name, name, found
        elif inspect.isroutine(member):
            bound = getattr(cls, name)
            if docstring(bound):
                yield name, signature(name, bound), docstring(bound)


def section(module: ModuleType, name: str) -> str:
    """One public name: heading, signature, docstring; of a class its members as well.

    Raises AttributeError when the module has no such name, ValueError when it has no docstring.
    """
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no public name {name!r}: correct PUBLIC in tools/make_api.py")
    value = getattr(module, name)
    if not docstring(value):
        raise ValueError(f"{module.__name__}.{name}: expected a docstring, found none; write one")
    parts = [f"### `{name}`", f"```python\n{signature(name, value)}\n```", docstring(value)]
    if inspect.isclass(value):
        for _, shown, text in members(value):
            parts += [f"```python\n{name}.{shown}\n```", text]
    return "\n\n".join(parts)


def page() -> str:
    """The text of docs/api.md."""
    package = importlib.import_module(PACKAGE)
    modules = {PACKAGE: tuple(name for name in package.__all__ if not name.startswith("__"))}
    modules |= {f"{PACKAGE}.{module}": names for module, names in PUBLIC.items()}
    parts = [HEAD.rstrip()]
    for path, names in modules.items():
        module = importlib.import_module(path)
        parts += [f"## `{path}`", *(section(module, name) for name in names)]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: make_api.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is not up to date; run: python tools/make_api.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
