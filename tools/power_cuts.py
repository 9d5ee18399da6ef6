"""Cut the power of a training many times: copy the disk it writes to, at random moments, and go on from each copy.

Needs Linux and root (it mounts), e2fsprogs, and for --work a folder on a file system with reflinks (btrfs, XFS): there
a copy of the image of the disk is of one moment, although the training goes on. The disk is ext4 with its defaults. A
copy holds what the kernel had written by then, as after a power cut; what it had not is lost. What a disk itself keeps
in a cache and loses is not tried here: `PowerCuts` of tests/support/crashes.py drops all that was not flushed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.errors import UserError
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training.checkpoint import checkpoint_step, find_checkpoint, list_checkpoints
from mask2former_dinov3.training.train import train

SIZE = "400M"
OPTIONS: dict[str, Any] = {
    "backbone": "tiny",
    "image_height": 64,
    "image_width": 64,
    "num_queries": 5,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "mask_feature_size": 32,
    "per_device_train_batch_size": 1,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "lr_scheduler_type": "constant",
    "with_tracking": False,
    "mixed_precision": "no",
}


WITH_EVALUATION: dict[str, Any] = {"dataset_name": str(SAMPLE), "checkpointing_steps": 2}
MOSTLY_SAVING: dict[str, Any] = {
    "train_annotations": str(SAMPLE / "train" / "_annotations.coco.json"),
    "train_images": str(SAMPLE / "train"),
    "valid_split": 0,
    "checkpointing_steps": 1,
}


FLUSHING = "import sys; from mask2former_dinov3.cli import main; sys.exit(main(sys.argv[1:]))"
NOT_FLUSHING = f"import os; os.fsync = lambda file: None; {FLUSHING}"


def call(*words: object) -> None:
    """Run a program; its output is shown if it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {done.returncode}: {done.stdout}{done.stderr}")


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """The file system in an image file, at `place`."""
    place.mkdir(exist_ok=True)
    call("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        call("umount", place)


def take_cuts(
    work: Path, options: dict[str, Any], number: int, seed: int, start: str = FLUSHING
) -> list[dict[str, Any]]:
    """Train on a disk of its own and copy it `number` times. Returns the copies and what stood there just before.

    start: Python that runs the command line.
    """
    disk, place, draw = work / "disk.img", work / "disk", random.Random(seed)
    call("truncate", "-s", SIZE, disk)
    call("mkfs.ext4", "-q", "-F", disk)
    cuts: list[dict[str, Any]] = []
    with mounted(disk, place):
        config = work / "train.json"
        config.write_text(json.dumps({**options, "output_dir": str(place / "run"), "max_train_steps": 1_000_000}))
        process = subprocess.Popen([sys.executable, "-c", start, "train", "--config", str(config)], cwd=work)
        try:
            while not list_checkpoints(place / "run"):
                if process.poll() is not None:
                    raise SystemExit("the training ended before its first checkpoint")
                time.sleep(0.05)
            for cut in range(number):
                time.sleep(draw.uniform(0, 3))
                steps = [checkpoint_step(path) for path in list_checkpoints(place / "run")]
                hidden = sorted(path.name for path in (place / "run").glob(".*"))
                copy = work / f"cut_{cut}.img"
                call("cp", "--reflink=always", disk, copy)
                cuts.append({"image": copy.name, "steps_before": steps, "hidden_before": hidden})
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return cuts


def go_on(work: Path, options: dict[str, Any], cut: dict[str, Any]) -> None:
    """Check and mount a copy, train two steps from its newest checkpoint; notes in `cut` what was found."""
    image = work / cut["image"]
    fsck = subprocess.run(["e2fsck", "-p", "-f", str(image)], capture_output=True, text=True)
    cut["fsck"] = fsck.returncode  # 0: sound once the journal is replayed, 1: repaired, 4 and more: not
    with mounted(image, work / "copy") as place:
        run = place / "run"
        cut["steps_after"] = [checkpoint_step(path) for path in list_checkpoints(run)]
        try:
            step = checkpoint_step(find_checkpoint("latest", run)) or 0
            resuming = {"output_dir": str(run), "resume_from_checkpoint": "latest", "max_train_steps": step + 2}
            train(load_config(None, {**options, **resuming})[0])
            cut["resumed_from"] = step
            cut["last_written"] = (run / "last" / "model.safetensors").is_file()
        except (UserError, OSError) as error:
            cut["error"] = str(error)
        expected = max(cut["steps_before"])
        cut["good"] = cut["fsck"] <= 1 and cut.get("resumed_from", -1) >= expected and cut.get("last_written", False)
    image.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--work", type=Path, required=True, help="empty folder on a file system with reflinks")
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument(
        "--mostly-saving", action="store_true", help="save each step, evaluate none: more cuts in a save"
    )
    parser.add_argument(
        "--without-flushing", action="store_true", help="os.fsync does nothing: cuts must be seen to hurt"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    options = OPTIONS | (MOSTLY_SAVING if args.mostly_saving else WITH_EVALUATION)
    cuts = take_cuts(args.work, options, args.cuts, args.seed, NOT_FLUSHING if args.without_flushing else FLUSHING)
    for cut in cuts:
        go_on(args.work, options, cut)
        print(json.dumps(cut), flush=True)
    good = sum(cut["good"] for cut in cuts)
    print(f"{good} of {len(cuts)} cuts left the newest checkpoint that was there, or a newer one; training went on")
    if args.output is not None:
        args.output.write_text(json.dumps(cuts, indent=1) + "\n")
    return int(good < len(cuts))


if __name__ == "__main__":
    sys.exit(main())
