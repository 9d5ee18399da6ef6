"""Print a constraints file with the lowest versions that pyproject.toml allows, of all dependencies and extras.

`python tools/lowest_constraints.py > lowest.txt && pip install -c lowest.txt -e '.[dev]'` makes the environment of the
CI job that tests the lower bounds. Dependencies of dependencies are left to pip.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# name, extras, then the version after `>=`, which every requirement but those on the project itself must have.
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?>=(?P<lowest>[\w.]+)")


def lowest_versions(project: dict[str, Any]) -> list[str]:
    """`name==version` for each requirement of the table `project`, with its environment marker, sorted and unique.

    Raises ValueError for a requirement without a lower bound and for a package with two different ones.
    """
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    pins: dict[str, str] = {}
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        if wanted.split("[")[0].strip() == project["name"]:  # extras that include other extras
            continue
        match = REQUIREMENT.match(wanted)
        if match is None:
            raise ValueError(
                f"pyproject.toml: expected a lower bound such as {wanted.strip()}>=1.0, got {requirement!r}"
            )
        pin = f"{match['name']}=={match['lowest']}" + (f"; {marker.strip()}" if marker else "")
        if pins.setdefault(match["name"], pin) != pin:
            raise ValueError(f"pyproject.toml: {match['name']} has two lower bounds: {pins[match['name']]} and {pin}")
    return sorted(pins.values(), key=str.lower)


def main(arguments: list[str]) -> int:
    if arguments:
        print("usage: lowest_constraints.py > lowest.txt", file=sys.stderr)
        return 2
    print("\n".join(lowest_versions(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
