"""All benchmarks that have a target, as one Markdown table and one JSON file under benchmarks/results (`make bench`).

Every row alternates the baseline and ours in this process; memory is measured in processes of its own. `--quick` is a
smoke test on a tiny model and small images: its numbers mean nothing. On a GPU (`--device cuda`) other rows are run.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import dataloader
import evaluation
import inference
import startup
import train_step
from machine import describe_run, write_result
from mask2former_dinov3.benchmark.row_table import Row, markdown
from mask2former_dinov3.inference.predictor import cpu_has_bf16
from measure import HERE, default_dataset, name_of, sample_dataset

HEAD = ("work", "baseline", "ours", "ratio", "target", "met")
FAILED = "failed"
NOTE = "Ratios are ours / baseline, speeds the other way round; see benchmarks/README.md."
NO_BF16 = "not measured: this CPU has no bf16 instructions"


class Target(NamedTuple):
    """What of a row is shown in the table, and what of it is compared with a limit.

    baseline, ours, ratio, judged: keys of the row; limit: None where nothing is asked; least: at least, not at most.
    """

    what: str
    unit: str
    baseline: str | None
    ours: str
    ratio: str | None
    judged: str
    limit: float | None = None
    least: bool = False


class Entry(NamedTuple):
    """One measurement: its name, the function that makes its rows, the command line, the same in small, the targets."""

    work: str
    rows: Callable[[Sequence[str]], list[Row]]
    arguments: str
    quick: str
    targets: tuple[Target, ...]


def time_at_most(limit: float | None) -> Target:
    return Target("time", "s", "baseline_seconds", "ours_seconds", "time_ratio", "time_ratio", limit)


def memory_at_most(limit: float | None) -> Target:
    return Target("peak memory", "GB", "baseline_peak_gb", "ours_peak_gb", "memory_ratio", "memory_ratio", limit)


def floors_at_most(limit: float) -> Target:
    return Target("time / ViT alone", "", "baseline_floors", "ours_floors", "time_ratio", "ours_floors", limit)


def speedup_at_least(limit: float | None) -> Target:
    keys = ("baseline_images_per_second", "ours_images_per_second", "speedup", "speedup")
    return Target("speed", "images/s", *keys, limit, least=True)


SAME_AP = Target("AP, off pycocotools on our masks", "", "baseline_ap", "ours_ap", None, "ap_difference", 1e-6)
ABOVE_MODEL = Target("above the loaded model", "GB", None, "ours_above_loaded_gb", None, "ours_above_loaded_gb", 1.0)
SLOWEST = Target("slowest", "s", None, "ours_seconds", None, "ours_seconds", 0.5)
HEAD_SHARE = Target("share of the head", "", None, "head_share", None, "head_share")
EOMT = Target(
    "speed, EoMT as the baseline",
    "images/s",
    "eomt_images_per_second",
    "ours_images_per_second",
    "eomt_speedup",
    "eomt_speedup",
)

SMALL = "--preset tiny --size 64 --repeat 1"
FROZEN = "train step 1024, backbone frozen, 10 instances"
TINY_BATCH = "--preset tiny --size 256 --batch 8 --instances 40 --points 12544 --train-backbone"
PLAN = (
    Entry("inference 1024, fp32", inference.rows, "--no-memory", SMALL, (floors_at_most(2.0),)),
    Entry("inference 512, fp32", inference.rows, "--size 512 --no-memory", SMALL, (floors_at_most(2.6),)),
    Entry("inference 1024, bf16", inference.rows, "--dtype bf16 --no-memory", SMALL, (time_at_most(0.55),)),
    Entry(f"{FROZEN}, fp32", train_step.rows, "", SMALL, (time_at_most(0.5), memory_at_most(0.5))),
    Entry(
        "train step 1024, all trained, 10 instances, fp32",
        train_step.rows,
        "--train-backbone",
        SMALL,
        (time_at_most(0.55), memory_at_most(0.67)),
    ),
    Entry(
        "train step 1024, all trained, 10 instances, fp32, ours with gradient checkpointing",
        train_step.rows,
        "--train-backbone --checkpointing",
        SMALL,
        (time_at_most(None), memory_at_most(None)),
    ),
    Entry(f"{FROZEN}, bf16", train_step.rows, "--dtype bf16 --no-memory", SMALL, (time_at_most(0.5),)),
    Entry(
        "train step 256, tiny, batch 8, 40 instances, all trained",
        train_step.rows,
        f"{TINY_BATCH} --no-memory",
        f"{SMALL} --batch 2",
        (time_at_most(0.25),),
    ),
    Entry(
        "data path 1024, one process",
        dataloader.rows,
        "--no-memory --dataset DATASET",
        "--size 64 --images 2 --repeat 1",
        (speedup_at_least(6.0),),
    ),
    Entry(
        "post-process and AP 1024, 100 detections",
        evaluation.rows,
        "--no-memory --dataset DATASET",
        "--size 64 --images 2 --detections 20 --repeat 1",
        (speedup_at_least(8.0), SAME_AP),
    ),
    Entry(
        "one image 4000x3000, 200 queries",
        evaluation.rows,
        "--large",
        "--size 64 --preset tiny --queries 20 --large-size 300 400",
        (ABOVE_MODEL,),
    ),
    Entry("import and every --help", startup.rows, "", "--repeat 1 --verbs train", (SLOWEST,)),
)


def on_gpu(preset: str, compiled: str) -> tuple[Entry, ...]:
    """What is measured of a model on a GPU; compiled: "" or "--compile"."""
    what, how = f"{preset}, batch 8, bf16", "compiled" if compiled else "eager"
    arguments, quick = f"--device cuda --preset {preset} --batch 8 --dtype bf16 {compiled}", "--size 64 --repeat 1"
    trained = (speedup_at_least(None), memory_at_most(None))
    return (
        Entry(
            f"inference 1024, {what}, {how}", inference.rows, f"{arguments} --eomt", quick, (*trained, HEAD_SHARE, EOMT)
        ),
        Entry(f"train step 1024, {what}, backbone frozen, {how}", train_step.rows, arguments, quick, trained),
        Entry(
            f"train step 1024, {what}, all trained, {how}",
            train_step.rows,
            f"{arguments} --train-backbone",
            quick,
            trained,
        ),
    )


PRESETS = ("smallplus", "large")
CUDA_PLAN = tuple(entry for how in ("", "--compile") for preset in PRESETS for entry in on_gpu(preset, how))


def measure(entry: Entry, args: argparse.Namespace, dataset: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of an entry and its lines of the table; a failure is a line too, and its reason goes to stderr."""
    if "bf16" in entry.arguments and args.device == "cpu" and not args.quick and not cpu_has_bf16():
        return [], [dict.fromkeys(HEAD, "—") | {"work": entry.work, "met": NO_BF16}]
    repeat = f"--repeat {args.repeat}" if args.repeat else ""
    words = f"{entry.arguments} {repeat} {entry.quick if args.quick else ''}".split()
    gc.collect()  # models of the last entry are in reference cycles
    try:
        rows = entry.rows([str(dataset) if word == "DATASET" else word for word in words])
        return rows, [line_of(entry.work, target, rows, args.quick) for target in entry.targets]
    except Exception:
        traceback.print_exc()
        return [], [dict.fromkeys(HEAD, "—") | {"work": entry.work, "met": FAILED}]


def line_of(work: str, target: Target, rows: list[Row], quick: bool) -> dict[str, Any]:
    """One line of the table, from the worst of several rows (commands: the slowest). --quick checks no target."""
    row = max(rows, key=lambda one: float(one[target.judged]))
    value, limit = row[target.judged], target.limit
    met = "—"
    if limit is not None and not quick:
        met = "yes" if (value >= limit if target.least else value <= limit) else "no"
    hidden = target.judged not in (target.ours, target.ratio)
    return {
        "work": f"{work}: {target.what}",
        "baseline": cell(row, target.baseline, target.unit),
        "ours": cell(row, target.ours, target.unit),
        "ratio": cell(row, target.ratio, ""),
        "target": "—" if limit is None else f"{'≥' if target.least else '≤'} {limit:g}",
        "met": f"{met} ({value:.1g})" if hidden else met,
        "value": value,
    }


def cell(row: Row, key: str | None, unit: str) -> str:
    return "—" if key is None else f"{row[key]:.3g} {unit}".rstrip()


def table_of(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    return markdown([list(HEAD), *([str(line[column]) for column in HEAD] for line in lines)])


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="All benchmarks that have a target, as one table.", allow_abbrev=False)
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--quick", action="store_true", help="smoke test of a minute on the bundled sample")
    found.add_argument("--repeat", type=int, help="timed runs per side (default: 3, or 5 for short ones)")
    found.add_argument("--rows", default="", help="only rows whose name contains this text, in a file of their own")
    found.add_argument("--dataset", type=Path, help="folder of a COCO data set; default: nuclei, or the sample")
    found.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    return found


def command_of(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    switches = [f"--device {args.device}"] * (args.device != "cpu") + ["--quick"] * args.quick
    switches += [f"--rows '{args.rows}'"] * bool(args.rows)
    return " ".join(["python benchmarks/run_all.py", *switches, *([f"--repeat {args.repeat}"] * bool(args.repeat))])


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no GPU here", file=sys.stderr)
        return 1
    dataset = args.dataset or (sample_dataset() if args.quick else default_dataset())
    facts = describe_run(args.device) | {"data set": name_of(dataset), "command": command_of(args)}
    if args.quick:
        facts |= {"smoke test": "a tiny model and small images throughout, the numbers mean nothing"}
    parts = [*re.findall(r"\w+", args.rows), *(["quick"] if args.quick else [])]
    lines: list[dict[str, Any]] = []
    rows: list[Row] = []
    for entry in (one for one in (CUDA_PLAN if args.device == "cuda" else PLAN) if args.rows in one.work):
        print(f"{entry.work} …", file=sys.stderr, flush=True)
        found, added = measure(entry, args, dataset)
        rows += found
        lines += added
        # After each row, so that a run that is killed keeps its rows.
        content = {"table": lines, "rows": rows}
        write_result(args.output, parts, "Benchmarks", facts, f"{table_of(lines)}\n\n{NOTE}", content)
    print(table_of(lines))
    return int(any(line["met"] == FAILED for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
