"""Change input files at random, structure first, and count what readers do not answer with a clear error.

    python tools/fuzz_inputs.py --count 2000 --seed 0

Kinds: annotations (`check-data`), results and the annotations they are scored against (`evaluate`), configurations of
`train`, and model folders. Each changed input is read in a process of its own, forked from this one, with limits on
time and memory. A reader may accept it, or raise a UserError or OSError that names the file. Everything else is a
finding: another exception, a message without the file's name, more than 10 seconds, more than 1 GB. The number of a
case and the seed reproduce it: `--only 17`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0
GIGABYTE = 2**30
KINDS = ("annotations", "results", "scored", "configuration", "model")

# Texts that stand for what json.dumps does not write.
RAW = {
    "RAW-DIGITS": "9" * 5000,
    "RAW-E400": "1e400",
    "RAW-TINY": "1e-400",
    "RAW-DEEP": "[" * 5000 + "]" * 5000,
    "RAW-DEEPER": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "RAW-NAN": "NaN",
    "RAW-MINUS-INF": "-Infinity",
    "RAW-HALF": '"a\\ud800"',
    "RAW-TWICE": '{"id": 1, "id": 2}',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e-320, 1e20, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64),
    *("", " ", "a", "0", "1.5", "nan", "1e999", "\x1b[2J\x1b[31m", "\x00", "\u202e", "../../etc/passwd", "/dev/zero"),
    *("x" * 100_000, "\u0663", "9" * 400, [], {}, [[]], [None], [1], ["a"], {"a": 1}, {"": None}, [[[[1.0]]]], "é" * 9),
    *RAW,
)


COMPRESSED = "U>i0W100000000000000000000000kg2"  # a rectangle of 64 x 64 pixels


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """A changed copy of a JSON value: one to three changes at random places."""
    holder = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parent, key = _pick(rng, holder)
        _change(rng, parent, key)
    return holder[0] if holder else None


def _pick(rng: random.Random, holder: list[Any]) -> tuple[Any, Any]:
    """A random place: its parent, and the key there. Deeper places are as likely as those at the top."""
    parent: Any = holder
    key: Any = 0
    while parent and isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    return parent, key


def _change(rng: random.Random, parent: Any, key: Any) -> None:
    if not parent:
        return
    value = parent[key]
    action = rng.randrange(10)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    elif action == 1:
        parent[str(key) + rng.choice((" ", "_", "é", "\x1b"))] = parent.pop(key)
    elif action == 2:
        parent[key] = [value]
    elif action == 3:
        parent[key] = json.dumps(value)[:1000]
    elif action == 4 and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = value * rng.choice((-1, 0.5, 1e3, 1e9, 1e18, 10**30)) + rng.choice((0, 1, -1, 0.25))
    elif action == 5 and isinstance(value, list):
        parent[key] = value * rng.choice((0, 2, 50))
    elif action == 6 and isinstance(value, list):
        rng.shuffle(value)
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))


def to_bytes(rng: random.Random, tree: Any) -> bytes:
    """JSON text of a tree, sometimes changed as text."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    data = text.encode("utf-8", "surrogatepass")
    place = rng.randrange(len(data) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: data[:place],
        lambda: data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
        lambda: data[:place] + data[max(0, place - 40) :],
        lambda: text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1")), "replace"),
        lambda: data + b"\n" + data,
        lambda: data[:place] + bytes(rng.choice((1, 5000))) + data[place:],
        lambda: b"\xff\xfe" + data,
        lambda: b"",
        lambda: b"[" + data + b"]",
    )
    return rng.choice(changes)() if rng.random() < 0.15 else data


@dataclass(frozen=True)
class Case:
    """One changed input. read: what reads it. names: one of these must be in the message of an error."""

    read: Callable[[], None]
    names: tuple[str, ...]


class Inputs:
    """Sound inputs of every kind, and cases made from them in a folder."""

    def __init__(self, folder: Path) -> None:
        from mask2former_dinov3.sample_data import SAMPLE

        self.folder = folder
        self.model = SAMPLE / "model"
        self.images = folder / "images"
        self.images.mkdir()
        self.content = _content()
        _write_images(self.images)
        self.truth = folder / "truth.json"
        self.truth.write_text(json.dumps(self.content))
        self.results = _results(self.content)
        options = json.loads((self.model / "train_config.json").read_text())
        self.options = options | {"dataset_name": str(folder)}

    def make(self, kind: str, rng: random.Random) -> Case:
        """A case of a kind, in an empty folder."""
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        file = place / "input.json"
        if kind == "model":
            return self._make_model(place, rng)
        tree = {"results": self.results, "configuration": self.options}.get(kind, self.content)
        file.write_bytes(to_bytes(rng, mutate_tree(rng, tree)))
        if kind == "annotations":
            words = ["check-data", str(file), "--valid-split", "0"]
            (place / "input").symlink_to(self.images)
            for image in self.images.iterdir():
                (place / image.name).symlink_to(image)
            return Case(lambda: run_verb(words), (file.name, *(image.name for image in self.images.iterdir())))
        if kind == "configuration":
            return Case(lambda: read_configuration(file), (file.name,))
        results = place / "results.json"
        results.write_text(json.dumps(self.results))
        truth, scored = (self.truth, file) if kind == "results" else (file, results)
        words = ["evaluate", "--annotations", str(truth), "--predictions", str(scored), "--output", str(place / "out")]
        return Case(lambda: run_verb(words), (file.name,))

    def _make_model(self, place: Path, rng: random.Random) -> Case:
        names = ("config.json", "preprocessor_config.json", "model.safetensors")
        changed = rng.choices(names, (5, 3, 4))[0]
        for name in names:
            if name != changed:
                (place / name).symlink_to(self.model / name)
        data = (self.model / changed).read_bytes()
        if changed == "model.safetensors":
            data = _mutate_weights(rng, data)
        else:
            data = to_bytes(rng, mutate_tree(rng, json.loads(data)))
        (place / changed).write_bytes(data)
        return Case(lambda: load_folder(place), (str(place),))


def _mutate_weights(rng: random.Random, data: bytes) -> bytes:
    """A changed header of a safetensors file, its length true or not, or a file that is cut."""
    length = int.from_bytes(data[:8], "little")
    action = rng.randrange(8)
    if action == 0:
        return data[: rng.randrange(len(data))]
    if action == 1:
        return rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    header = to_bytes(rng, mutate_tree(rng, json.loads(data[8 : 8 + length])))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _content() -> dict[str, Any]:
    """A COCO file of three images with polygons, both kinds of RLE and a crowd region."""
    square = [10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]
    shapes: list[Any] = [
        [square],
        [square, [45, 45, 60, 45, 60, 60]],
        {"size": [64, 64], "counts": [1290, 20, 44, 20, 44, 20, 2658]},
        {"size": [64, 64], "counts": COMPRESSED},
        [[2, 2, 20, 2, 20, 9, 2, 9]],
    ]
    return {
        "info": {"description": "x"},
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in (1, 2, 3)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": number % 3 + 1,
                "category_id": 3 if number % 2 else 7,
                "segmentation": shape,
                "iscrowd": int(number == 2),
                "area": 900.0,
                "bbox": [10.0, 10.0, 30.0, 30.0],
            }
            for number, shape in enumerate(shapes)
        ],
        "categories": [{"id": 3, "name": "disc", "supercategory": "s"}, {"id": 7, "name": "bar"}],
    }


def _results(content: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "segmentation", "bbox")
    return [{key: one[key] for key in keys} | {"score": 0.5 + one["id"] / 20} for one in content["annotations"]]


def _write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    for number in (1, 2, 3):
        Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")


class Refusal(Exception):
    """A verb has ended with an error message."""


def run_verb(words: list[str]) -> None:
    """Run the command line; Refusal with its message where it ends with an error."""
    from mask2former_dinov3.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(words)
    if "out of memory" in said.getvalue():
        raise MemoryError(said.getvalue()[:500])
    if code or "\x1b" in said.getvalue():
        raise Refusal(said.getvalue())


def read_configuration(file: Path) -> None:
    """Read a configuration of `train`."""
    from mask2former_dinov3.cli.messages import visible
    from mask2former_dinov3.config.train_config import load_config
    from mask2former_dinov3.errors import UserError

    try:
        load_config(file, {})
    except UserError as error:  # as the command line shows it
        raise Refusal(visible(str(error))) from error


def load_folder(folder: Path) -> None:
    """Load a model folder."""
    from mask2former_dinov3.cli.messages import visible
    from mask2former_dinov3.errors import UserError
    from mask2former_dinov3.inference.predictor import load_model

    try:
        load_model(folder, "cpu")
    except UserError as error:
        raise Refusal(visible(str(error))) from error


def judge(case: Case) -> tuple[str, str]:
    """Read a case in a forked process: (what came of it, details)."""
    receive, send = os.pipe()
    before = _resident()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _read_and_tell(case, send)
    os.close(send)
    told, deadline = b"", time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0 and select.select([receive], [], [], left)[0]:
        piece = os.read(receive, 65_536)
        if not piece:
            break
        told += piece
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(receive)
        return "hang", f"more than {SECONDS:g} seconds"
    os.close(receive)
    _, status, used = os.wait4(child, 0)
    verdict, _, details = told.decode("utf-8", "replace").partition("\n")
    if not verdict:
        return "traceback", f"the process died with status {status}"
    if (grown := used.ru_maxrss * 1024 - before) > GIGABYTE:
        return "memory", f"{grown / 1e9:.1f} GB; {verdict} {details[-300:]}"
    return verdict, details


def _read_and_tell(case: Case, send: int) -> None:
    """The child: read, write the verdict, end without any clean-up of the parent's."""
    import mask2former_dinov3.errors as errors

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * GIGABYTE,) * 2)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    verdict, details = "accepted", ""
    try:
        case.read()
    except (Refusal, errors.UserError, OSError) as error:
        details = str(error)
        verdict = "refused" if any(name in details for name in case.names) else "nameless"
        if "\x1b" in details:
            verdict = "escape code"
    except MemoryError:
        verdict, details = "memory", traceback.format_exc()
    except BaseException:
        verdict, details = "traceback", traceback.format_exc()
    os.write(send, f"{verdict}\n{details[-3000:]}".encode("utf-8", "backslashreplace"))
    os._exit(0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fuzz(
    kinds: tuple[str, ...], numbers: range | list[int], seed: int, say: Callable[[str], None] = lambda _: None
) -> tuple[Counter[str], list[str]]:
    """Judge one case of the kinds, in turn, for each number: counts of what came of them, and the findings as text.

    say: gets each finding at once.
    """
    import mask2former_dinov3.cli.verbs
    import mask2former_dinov3.data.check
    import mask2former_dinov3.evaluation.evaluate
    import mask2former_dinov3.inference.predictor  # noqa: F401  # imported once, before the forks

    counts: Counter[str] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder))
        for number in numbers:
            kind = kinds[number % len(kinds)]
            verdict, details = judge(inputs.make(kind, random.Random(f"{seed} {number}")))
            counts[f"{kind}: {verdict}"] += 1
            if verdict not in ("accepted", "refused"):
                findings.append(f"--seed {seed} --only {number} ({kind}): {verdict}\n{details}")
                say(findings[-1])
    return counts, findings


def main() -> int:
    """Print the findings and the counts; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases")
    given = parser.parse_args()
    numbers = given.only or range(given.start, given.start + given.count)
    counts, findings = fuzz(KINDS, numbers, given.seed, lambda finding: print(finding, end="\n\n", flush=True))
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    print(f"{len(findings)} findings in {sum(counts.values())} cases")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
