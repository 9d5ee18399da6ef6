"""Write docs/configuration.md from the configuration class; with --check only say whether it is up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mask2former_dinov3.config.legacy_options import IGNORED
from mask2former_dinov3.config.presets import HUB_BACKBONES
from mask2former_dinov3.config.train_config import TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
# The first field of each section, in the order of the class.
SECTIONS = {
    "description": "The run",
    "dataset_name": "The data",
    "backbone": "The model",
    "image_height": "The image",
    "num_train_epochs": "The optimisation",
    "per_device_eval_batch_size": "Evaluation, checkpoints, logs",
}

HEAD = """# Configuration

<!-- Written by tools/make_configuration.py from src/mask2former_dinov3/config.py; edit that file. -->

A run is configured by flat JSON (`train --config FILE.json`) and by flags (`--key value`, `--key=value`; dashes serve
as underscores). Key, flag and field are the same name. Order: defaults < JSON < command line. An unknown key is an
error that names the nearest one, and all errors come in one message. `none` on the command line is JSON's `null`.
The resolved configuration is written to `train_config.json` in the run folder and can be fed back with `--config`.
"""


def type_of(name: str) -> str:
    """The JSON type of a field, in words."""
    schema = TrainConfig.model_json_schema()["properties"][name]
    parts = []
    for option in schema.get("anyOf", [schema]):
        if "enum" in option or "const" in option:
            parts += [f"`{value}`" for value in option.get("enum", [option.get("const")])]
            continue
        words = {"integer": "whole number", "null": "null"}.get(option["type"], option["type"])
        low, above = option.get("minimum"), option.get("exclusiveMinimum")
        high, below = option.get("maximum"), option.get("exclusiveMaximum")
        words += f" ≥ {low:g}" if low is not None else f" > {above:g}" if above is not None else ""
        words += f", ≤ {high:g}" if high is not None else f", < {below:g}" if below is not None else ""
        parts.append(words)
    return ", ".join(parts)


def page() -> str:
    """The whole document."""
    lines = [HEAD]
    for name, field in TrainConfig.model_fields.items():
        if name in SECTIONS:
            lines += [f"\n## {SECTIONS[name]}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{name}` | {type_of(name)} | {default} | {field.description} |")
    lines += ["\n## Options of older scripts\n", "Accepted, each with a note when the run starts.\n"]
    lines += ["| key | what happens |", "|---|---|"]
    lines += [f"| `{name}` | ignored: {reason} |" for name, reason in IGNORED.items()]
    lines += [
        "| `model_name_or_path` | read as `head` |",
        f"| `model` | `models/mask2former_dinov3_vitsmallplus_pyramid.py` becomes `backbone` "
        f"`{HUB_BACKBONES['smallplus']}`, `neck` `pyramid` and `backbone_norm` `false`; `vitlarge` likewise, and "
        f"`neck` `plain` without `_pyramid` |",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: make_configuration.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is not up to date; run: python tools/make_configuration.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
