"""Files of results, named after the hardware and the day, with what is known of the machine and the commit."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former_dinov3.benchmark.machine import describe_machine as describe_hardware

ROOT = Path(__file__).parents[1]


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """As the verb `benchmark` describes it, and the commit."""
    return {**describe_hardware(device), "commit": commit()}


def slug_of(machine: dict[str, Any]) -> str:
    """The hardware as part of a file name: the GPU where there is one, else the CPU and its cores."""
    name = machine.get("gpu") or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def describe_run(device: str = "cpu") -> dict[str, Any]:
    """The day and the machine. Call it before measuring, while the commit is still that of the running code."""
    return {"date": datetime.date.today().isoformat(), **describe_machine(device)}


def write_result(
    folder: Path, parts: Sequence[str], title: str, facts: dict[str, Any], text: str, content: dict[str, Any]
) -> None:
    """HARDWARE_DATE_PARTS.md (text) and .json (content) in `folder`, what is known of the run first.

    facts: `describe_run` and what else is known.
    """
    known = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    stem = folder / "_".join([slug_of(facts), facts["date"], *parts])
    folder.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(f"# {title}\n\n{known}\n\n{text}\n", encoding="utf-8")
    stored = json.dumps({"facts": facts} | content, indent=2, ensure_ascii=False)
    stem.with_suffix(".json").write_text(f"{stored}\n", encoding="utf-8")


def commit() -> str:
    """The commit of the working tree, with "-dirty" when files differ from it; "unknown" outside of git.

    GIT_COMMIT, where it is set, wins: a copy of the tree on another machine may have no history, or an older one.
    """
    told = os.environ.get("GIT_COMMIT")
    head = told or _git("rev-parse", "--short=12", "HEAD")
    if told or head is None:
        return head or "unknown"
    changed = [line for line in (_git("status", "--porcelain") or "").splitlines() if "benchmarks/results" not in line]
    return f"{head}-dirty" if changed else head


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None
