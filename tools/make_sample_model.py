"""Train the bundled sample model: `python tools/make_sample_model.py NUCLEI_FOLDER RUN_FOLDER [OUTPUT]`.

NUCLEI_FOLDER holds `train/` as in `make_sample.py`. Only its images are used: nine of ten for training, every tenth (by
name) for the choice of the checkpoint, so `valid/` is left for measuring. The run is `from_scratch_args.json` with
CHANGES: crops at the images' own scale. Its `best/` becomes OUTPUT in half precision, with `train_config.json` and
`metrics.jsonl` of the run. An unfinished run in RUN_FOLDER is resumed, a finished one is not repeated. It takes about
80 minutes on one core of 34 GFLOP/s (float32).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_sample import keep_images

from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.config.presets import SPLIT_OPTIONS
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.inference.predictor import load_network
from mask2former_dinov3.model_folder.card import RunDescription
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training.batch_size import images_per_step
from mask2former_dinov3.training.checkpoint import list_checkpoints
from mask2former_dinov3.training.run_description import describe_run
from mask2former_dinov3.training.train import load_data, train

DATASET = "BBBC038v1, a subset"
HELD_BACK = 10  # every tenth image of the training split chooses the checkpoint
CHANGES: dict[str, Any] = {
    "description": "The bundled sample model: nuclei of all kinds, crops at the images' own scale.",
    **{"image_scale": "native", "scale_min": 0.7, "scale_max": 1.5, "flip": "all"},
    **{"num_queries": 250, "max_detections": 400, "max_train_steps": 1400, "checkpointing_steps": 350},
}


def hold_back(source: Path, run: Path) -> dict[str, str]:
    """Write the two parts of the annotation file to `run`; returns the options that name them."""
    coco = json.loads((source / "_annotations.coco.json").read_text(encoding="utf-8"))
    names = sorted(str(image["file_name"]) for image in coco["images"])
    chosen = set(names[::HELD_BACK])
    options: dict[str, str] = {}
    for split in ("train", "valid"):
        ids = {int(one["id"]) for one in coco["images"] if (one["file_name"] in chosen) == (split == "valid")}
        file = run / f"{split}.json"
        file.write_text(json.dumps(keep_images(coco, ids)), encoding="utf-8")
        options |= {f"{split}_annotations": str(file), f"{split}_images": str(source)}
    return options


def public_options(run: Path) -> dict[str, Any]:
    """The options of a run, without paths of this machine."""
    options: dict[str, Any] = json.loads((run / "train_config.json").read_text(encoding="utf-8"))
    return options | dict.fromkeys((*SPLIT_OPTIONS, "resume_from_checkpoint")) | {"output_dir": "runs/sample_model"}


def describe(config: TrainConfig, options: dict[str, Any], metrics: dict[str, Any]) -> RunDescription:
    """What the model card says about the run. No versions: it may have gone on on another machine."""
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


def store(run: Path, output: Path) -> None:
    """Write `best/` of the run to `output` in half precision, with its log; it is still computed in float32."""
    model, processor = load_network(run / "best", "cpu")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = max((line for line in lines if "AP" in line), key=lambda line: float(line["AP"]))
    config, _ = load_config(run / "train_config.json")
    described = describe(config, public_options(run), metrics)
    save_model_folder(model.half(), processor, output, metrics, described)
    stored = json.loads((output / "config.json").read_text(encoding="utf-8"))
    # Without a threshold of its own, as a model of before: commands use 0.5, until `evaluate` or training chooses one.
    stored |= {"dtype": "float32", **dict.fromkeys(("score_threshold", "score_threshold_source", "copy_overlap"))}
    (output / "config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    shutil.copy(run / "metrics.jsonl", output)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nuclei", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=SAMPLE / "model")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "last").exists():
        resumed = "latest" if list_checkpoints(run) else None
        places = {"output_dir": str(run), "resume_from_checkpoint": resumed}
        data = hold_back(arguments.nuclei / "train", run)
        train(load_config(SAMPLE / "from_scratch_args.json", {**CHANGES, **places, **data})[0])
    store(run, arguments.output)


if __name__ == "__main__":
    main(sys.argv[1:])
