"""Write docs/configuration.md from the options of `train`; with --check report whether the page is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from mask2former_dinov3.config.legacy_options import IGNORED
from mask2former_dinov3.config.option_help import list_options
from mask2former_dinov3.config.presets import HUB_BACKBONES

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

HEAD = """# Configuration

<!-- Written by tools/make_configuration.py from src/mask2former_dinov3/config/train_config.py; edit that file. -->

A training run is configured by a flat JSON file (`train --config FILE.json`) and by flags (`--key value` or
`--key=value`). The names are the same; flags may be written with dashes or underscores. Order: defaults < JSON file <
command line. All errors are reported together; for an unknown key the nearest valid one is named. `none` on the command
line is JSON's `null`. The resolved configuration is written to `train_config.json` in the run folder; that file can be
given to `--config` again.
"""


def page() -> str:
    """The text of the page."""
    lines = [HEAD]
    topic = ""
    for option in list_options():
        if option.topic != topic:
            topic = option.topic
            lines += [f"\n## {topic}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        default = option.default if option.default == "required" else f"`{option.default}`"
        lines.append(f"| `{option.name}` | {', '.join(option.kinds)} | {default} | {option.meaning} |")
    lines += ["\n## Options of older scripts\n", "They are accepted, and a note is shown when the run starts.\n"]
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
