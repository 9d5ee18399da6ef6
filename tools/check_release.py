"""Compare a release's tag with the versions in the repository: `python tools/check_release.py v1.2.3`.

pyproject.toml, the package, CITATION.cff and the newest section of CHANGELOG.md must have the tag's version, and that
section a date. The release workflow runs it first, with the standard library alone; without a tag it compares the
versions with pyproject.toml's and asks for no date.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Files with one pattern each, whose first match is the version.
VERSION_IN = {
    "src/mask2former_dinov3/version.py": r'^__version__ = "(.+?)"',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## \[(.+?)\]",
}


def faults(root: Path, tag: str | None) -> list[str]:
    """What contradicts the tag, or without one pyproject.toml, as messages; empty when all agree."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    expected = project if tag is None else tag.removeprefix("v")
    found = {"pyproject.toml": project}
    for name, pattern in VERSION_IN.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else "no version"
    lines = [f"{name}: expected {expected}, got {version}" for name, version in found.items() if version != expected]
    dated = rf"^## \[{re.escape(expected)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    if tag is not None and not re.search(dated, (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE):
        lines.append(f"CHANGELOG.md: expected a section '## [{expected}] - YYYY-MM-DD'")
    return lines


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("usage: check_release.py [TAG]", file=sys.stderr)
        return 2
    lines = faults(ROOT, arguments[0] if arguments else None)
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
