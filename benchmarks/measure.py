"""Both sides in processes of their own: median seconds in alternation, peak memory, and rows as a table or JSON lines.

The clock, the processes and the tables are those of the verb `benchmark`. Ratios are ours / baseline, a speedup is how
many times as many images we handle in a second.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.benchmark.asked_process import AskedProcess, ProcessFailedError
from mask2former_dinov3.benchmark.row_table import Row, markdown
from mask2former_dinov3.benchmark.timing import Timed, memory_peak, take_turns

HERE = Path(__file__).parent
SIDES = ("baseline", "ours")
PARTS = ("floor", "head", "eomt", "augmented")  # what inference.py and dataloader.py time beside them
NUM_LABELS = 80  # COCO's, for random weights
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "can't allocate memory")  # torch on a GPU, Python, torch on a CPU


def options(description: str, repeat: int = 3) -> argparse.ArgumentParser:
    """A parser with what all benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--repeat", type=int, default=repeat, help="timed runs after one warm-up; 0: the warm-up only")
    parser.add_argument("--json", action="store_true", help="one JSON object per row instead of a table")
    parser.add_argument("--only", choices=[*SIDES, *PARTS], help="run only this side, in this process")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # a run for every line on stdin
    parser.add_argument(
        "--plain-allocator", action="store_true", help="ours without what our commands tell the C library"
    )
    return parser


def model_options(description: str) -> argparse.ArgumentParser:
    """`options`, and which model on which images."""
    parser = options(description)
    parser.add_argument("--preset", choices=("tiny", "smallplus", "large"), default="smallplus")
    parser.add_argument("--size", type=int, default=1024, help="side of the square image, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile on all sides")
    return parser


def autocast(args: argparse.Namespace) -> torch.autocast:
    """The precision of `--dtype` on `--device`."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16")


def alternate(works: Mapping[str, Timed], repeat: int, warm_up_together: bool = False) -> dict[str, float]:
    """Median seconds of each: one warm-up each, then `repeat` rounds of turns.

    Compiling takes minutes, so that is better done by all at the same time.
    """
    with ThreadPoolExecutor(len(works) if warm_up_together else 1) as threads:
        list(threads.map(lambda work: work(), works.values()))
    return {name: median(seconds) for name, seconds in take_turns(works, repeat).items() if seconds}


def alone(load: Callable[[], Timed], args: argparse.Namespace) -> Row:
    """One side in this process: seconds (None with --repeat 0), peak_gb, and how far that is above what was loaded."""
    if args.only != "baseline" and not args.plain_allocator:
        keep_freed_memory()  # as the verbs of the command line do
    work = load()
    loaded = _memory_now(args.device)

    def row(seconds: float | None) -> Row:
        peak = memory_peak(args.device)
        return {"side": args.only, "seconds": seconds, "peak_gb": peak / 1e9, "above_loaded_gb": (peak - loaded) / 1e9}

    if not args.serve:
        return row(alternate({"work": work}, args.repeat).get("work"))
    for _ in sys.stdin:
        if args.device == "cuda":
            work()  # warm-up: allocates again what was released between the turns
        print(json.dumps(row(work())), flush=True)
        _give_back(args.device)
    sys.exit()  # end of stdin: the process that asked for turns has ended


class Contestant(AskedProcess):
    """One side loaded in a process of its own, where it waits for its turns, so that no side reuses another's memory.

    Called, it does its work once and returns the seconds it took; `last` is then the whole row.
    """

    def __init__(self, script: str, argv: Sequence[str], name: str) -> None:
        super().__init__([str(HERE / script), *argv, "--only", name, "--serve"])
        self.name = f"{script}: {name}"
        self.last: Row = {}

    def __call__(self) -> float:
        try:
            self.last = self.ask()
        except ProcessFailedError as error:
            raise RuntimeError(f"{self.name}: {error}") from error
        return float(self.last["seconds"])


@contextmanager
def contestants(script: str, argv: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Contestant]]:
    """Each of `names`, started together."""
    found: dict[str, Contestant] = {}
    try:
        for name in names:
            found[name] = Contestant(script, argv, name)
        yield found
    finally:
        for one in found.values():
            one.close()


def against(seconds: Mapping[str, float], images: int) -> Row:
    """The two sides' seconds and speeds, and their ratios; images: of one run."""
    row: Row = {f"{side}_seconds": seconds[side] for side in SIDES}
    row |= {f"{side}_images_per_second": images / seconds[side] for side in SIDES}
    ratio = seconds["ours"] / seconds["baseline"]
    return row | {"time_ratio": ratio, "speedup": 1 / ratio}


def peaks(script: str, argv: Sequence[str], counted: Mapping[str, Contestant] | None = None) -> Row:
    """Peak memory of each side: of a new process that does its work once, since a process's peak never falls again.

    counted: contestants on a GPU, which counts for itself.
    """
    row: Row = {}
    for side in SIDES:
        if counted is None:
            found = in_own_process(script, [*argv, "--only", side, "--repeat", "0"])
        else:
            found = counted[side].last
        row |= {f"{side}_peak_gb": found["peak_gb"], f"{side}_above_loaded_gb": found["above_loaded_gb"]}
    return row | {"memory_ratio": row["ours_peak_gb"] / row["baseline_peak_gb"]}


def in_own_process(script: str, argv: Sequence[str], timeout: float | None = None) -> Row:
    """The one row that `script` prints in a new process.

    Raises TimeoutExpired after `timeout` seconds, MemoryError when memory ran out, RuntimeError for any other failure.
    """
    command = [sys.executable, str(HERE / script), *argv, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode == -signal.SIGKILL or any(words in done.stderr for words in OUT_OF_MEMORY):
        raise MemoryError(f"{script}: out of memory")
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def show(rows: Sequence[Row], as_json: bool) -> None:
    """Rows on stdout: JSON lines, a table, or, for a single row, a list of its entries."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
    elif len(rows) == 1:
        width = max(map(len, rows[0]))
        for name, value in rows[0].items():
            print(f"{name:<{width}}  {_text(value)}")
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        print(markdown([names, *([_text(row.get(name)) for name in names] for row in rows)]))


def default_dataset() -> Path:
    """The validation images of nuclei if they lie beside the repository, otherwise those of the bundled sample."""
    nuclei = HERE.parents[1] / "shared" / "data" / "nuclei" / "valid"
    return nuclei if nuclei.is_dir() else sample_dataset()


def sample_dataset() -> Path:
    """The twelve validation images of the bundled sample."""
    return HERE.parent / "src" / "mask2former_dinov3" / "sample" / "valid"


def name_of(dataset: Path) -> str:
    """The last two parts of a folder, so that results do not show the folders of a machine."""
    return "/".join(dataset.resolve().parts[-2:])


def _text(value: Any) -> str:
    return "—" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _give_back(device: str) -> None:
    """Release cached memory: all sides share one GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()


def _memory_now(device: str) -> int:
    """Current memory of this process in bytes: resident in main memory, or allocated on the GPU."""
    return int(torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss)
