"""Train the bundled sample model: `python tools/make_sample_model.py NUCLEI_FOLDER RUN_FOLDER [OUTPUT]`.

NUCLEI_FOLDER holds `train/` and `valid/` as in `make_sample.py`. Images of purple-stained tissue are left out, so that
the demo can show fine-tuning on a few images of a new kind. The script trains twice: `from_scratch_args` with FIRST,
then the fine-tuning recipe `train_args` with CLOSING, without pasted instances. `best/` of the second run becomes
OUTPUT in half precision, with `train_config.json` and `metrics.jsonl` of both runs. The first run takes six minutes on
a shared H100 and hours on two CPU cores; the second takes a quarter of an hour on two cores. Unfinished runs in
RUN_FOLDER are resumed, finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from make_sample import keep_images
from PIL import Image

from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.inference.predictor import load_network
from mask2former_dinov3.model_folder.card import RunDescription
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training.batch_size import images_per_step
from mask2former_dinov3.training.checkpoint import list_checkpoints
from mask2former_dinov3.training.run_description import describe_run
from mask2former_dinov3.training.train import load_data, train

DATASET = "BBBC038v1 without purple-stained tissue"
STAINED = 25  # mean difference of the largest and the smallest channel, 0..255; less in grey images
FIRST: dict[str, Any] = {
    "description": "The bundled sample model: nuclei of all kinds but purple-stained tissue.",
    **{"image_height": 384, "image_width": 384, "scale_min": 0.7, "scale_max": 1.5, "flip": "all", "copy_paste": 0.5},
    **{"num_queries": 150, "max_detections": 150, "ema_decay": 0.999, "num_warmup_steps": 100},
    **{"per_device_train_batch_size": 8, "num_train_epochs": 75, "checkpointing_steps": 500},
}
CLOSING: dict[str, Any] = {
    **FIRST,
    **{"copy_paste": 0.0, "learning_rate": 0.0003, "ema_decay": 0.99, "num_warmup_steps": 10},
    **{"num_train_epochs": 8, "checkpointing_steps": 66},
}


def is_stained(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
    return bool((pixels.max(2) - pixels.min(2)).mean() > STAINED)


def without_stained(source: Path, target: Path) -> None:
    """Write the annotation file without the purple-stained images."""
    coco = json.loads((source / "_annotations.coco.json").read_text(encoding="utf-8"))
    ids = {int(image["id"]) for image in coco["images"] if not is_stained(source / image["file_name"])}
    target.write_text(json.dumps(keep_images(coco, ids)), encoding="utf-8")


def public_options(run: Path, first: Path) -> dict[str, Any]:
    """The options of a run, without paths of this machine."""
    options: dict[str, Any] = json.loads((run / "train_config.json").read_text(encoding="utf-8"))
    places = [name for name in options if name.endswith(("_images", "_annotations"))]
    options |= {"resume_from_checkpoint": None, **dict.fromkeys(places)}
    options["output_dir"] = f"runs/sample_model/{run.name}"
    if options["head"]:
        options["head"] = f"runs/sample_model/{first.name}/best"
    return options


def describe(config: TrainConfig, options: dict[str, Any], metrics: dict[str, Any]) -> RunDescription:
    """What the model card says about the last run. No versions: the runs may be from different machines."""
    known = describe_run(config, load_data(config))
    return replace(
        known,
        name="sample",
        dataset=DATASET,
        options=options,
        made_by={},
        changed={name: options[name] for name in known.changed},
        step=metrics["step"],
        step_size=images_per_step(config),
    )


def store(runs: list[Path], output: Path) -> None:
    """Write `best/` of the last run to `output` in half precision; it is still computed in float32.

    The log and the options of the last run go beside it, those of earlier runs into folders with the runs' names.
    """
    last, first = runs[-1], runs[0]
    model, processor = load_network(last / "best", "cpu")
    lines = [json.loads(line) for line in (last / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = max((line for line in lines if "AP" in line), key=lambda line: float(line["AP"]))
    config, _ = load_config(last / "train_config.json")
    described = describe(config, public_options(last, first), metrics)
    save_model_folder(model.half(), processor, output, metrics, described)
    stored = json.loads((output / "config.json").read_text(encoding="utf-8"))
    (output / "config.json").write_text(json.dumps({**stored, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    shutil.copy(last / "metrics.jsonl", output)
    for run in runs[:-1]:
        folder = output / run.name
        folder.mkdir(exist_ok=True)
        shutil.copy(run / "metrics.jsonl", folder)
        text = json.dumps(public_options(run, first), indent=2) + "\n"
        (folder / "train_config.json").write_text(text, encoding="utf-8")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nuclei", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=SAMPLE / "model")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    arguments.run.mkdir(parents=True, exist_ok=True)
    data: dict[str, str] = {}
    for split in ("train", "valid"):
        file = arguments.run / f"{split}.json"
        without_stained(arguments.nuclei / split, file)
        data |= {f"{split}_annotations": str(file), f"{split}_images": str(arguments.nuclei / split)}
    first, closing = arguments.run / "first", arguments.run / "closing"
    for folder, recipe, changes in (
        (first, "from_scratch_args.json", FIRST),
        (closing, "train_args.json", {**CLOSING, "head": str(first / "best")}),
    ):
        if not (folder / "last").exists():
            resumed = "latest" if list_checkpoints(folder) else None
            places = {"output_dir": str(folder), "resume_from_checkpoint": resumed, **data}
            train(load_config(SAMPLE / recipe, {**changes, **places})[0])
    store([first, closing], arguments.output)


if __name__ == "__main__":
    main(sys.argv[1:])
