"""Train StarDist on a data set and write its results as COCO JSON: the row beside ours in `docs/log.md`.

Runs in an environment of its own, without this project (stardist, BSD-3-Clause, and TensorFlow are no part of it):

    python nuclei.py --data nuclei --write fluorescence        # in the project's environment
    pip install stardist==0.9.2 tensorflow-cpu faster-coco-eval
    python stardist_beside.py fluorescence stardist_run --budget 10

The network is that of StarDist's example for this data (`examples/2D/2_training.ipynb`: 32 rays, grid 2x2, patches of
256x256, batches of 4, its flips, quarter turns and changes of brightness); the learning rate falls to 0 over the
budget, as in `learning.py`. Every sixth training image chooses both thresholds; the weights are those of the last step.
The clock runs in training alone. `predictions.json`, for `evaluate --predictions`, has objects with a probability from
--lowest on, so that AP has a curve.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from PIL import Image

CHOICE_EVERY = 6


def read_split(folder: Path) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """Records of the images; grey images (H, W) in 0..1, its 1st and 99.8th percentile at 0 and 1; label images."""
    from csbdeep.utils import normalize

    coco = json.loads((folder / "_annotations.coco.json").read_text(encoding="utf-8"))
    own: dict[int, list[dict[str, Any]]] = {}
    for one in coco["annotations"]:
        own.setdefault(one["image_id"], []).append(one)
    images, labels = [], []
    for record in coco["images"]:
        size = record["height"], record["width"]
        pixels = np.asarray(Image.open(folder / record["file_name"]).convert("L"), np.float32)
        images.append(normalize(pixels, 1, 99.8))
        painted = np.zeros(size, np.int32)
        for number, one in enumerate(own.get(record["id"], []), 1):
            coded = one["segmentation"]
            if isinstance(coded, list):
                coded = rle_codec.merge(rle_codec.frPyObjects(coded, *size))
            elif isinstance(coded["counts"], list):
                coded = rle_codec.frPyObjects(coded, *size)
            painted[rle_codec.decode(coded).astype(bool)] = number
        labels.append(painted)
    return coco["images"], images, labels


def augment(image: Any, labels: Any) -> tuple[Any, Any]:
    """Flips, quarter turns, brightness and noise, as in StarDist's example."""
    turns = np.random.randint(4)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if np.random.random() < 0.5:
        image, labels = image[::-1], labels[::-1]
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    return image + 0.02 * np.random.uniform(0, 1) * np.random.normal(size=image.shape), labels


def train_stardist(images: list[Any], labels: list[Any], output: Path, args: argparse.Namespace) -> tuple[Any, Any]:
    """The trained model, and what was spent: CPU-seconds, minutes and crops."""
    import keras
    from stardist.models import Config2D, StarDist2D

    class Budget(keras.callbacks.Callback):
        """The rate falls to 0 over the budget; then training stops."""

        def on_train_begin(self, logs: Any = None) -> None:
            self.start, self.cpu, self.crops = time.perf_counter(), time.process_time(), 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.crops += args.batch_size
            self.spent = {
                "minutes": (time.perf_counter() - self.start) / 60,
                "cpu_seconds": time.process_time() - self.cpu,
                "crops": self.crops,
            }
            share = self.spent[args.unit] / args.budget
            self.model.optimizer.learning_rate = args.learning_rate * max(1 - share, 0.0)
            self.model.stop_training = share >= 1  # at the end of the epoch of ten steps; the rate is 0 until then

    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        n_channel_in=1,
        train_learning_rate=args.learning_rate,
        train_batch_size=args.batch_size,
        train_reduce_lr=None,
        train_tensorboard=False,
    )
    model = StarDist2D(config, name="stardist", basedir=str(output))
    model.prepare_for_training()
    budget = Budget()
    model.callbacks = [budget]  # instead of StarDist's own: no checkpoint of the best validation loss is needed
    model.train(images, labels, (images[:1], labels[:1]), augmenter=augment, epochs=100_000, steps_per_epoch=10)
    return model, budget.spent


def write_results(model: Any, records: list[dict[str, Any]], images: list[Any], lowest: float, path: Path) -> None:
    """COCO results of all objects with a probability of at least `lowest`."""
    found = []
    for record, image in zip(records, images, strict=True):
        labels, details = model.predict_instances(image, prob_thresh=lowest, nms_thresh=model.thresholds.nms)
        for number, probability in enumerate(details["prob"], 1):
            mask = labels == number
            if mask.any():
                coded = rle_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
                counts = coded["counts"]
                text = counts.decode() if isinstance(counts, bytes) else counts
                found.append(
                    {
                        "image_id": record["id"],
                        "category_id": 1,
                        "score": float(probability),
                        "segmentation": {"size": list(mask.shape), "counts": text},
                    }
                )
    path.write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/ and valid/, each with _annotations.coco.json")
    parser.add_argument("output", type=Path)
    parser.add_argument("--budget", type=float, default=10.0)
    parser.add_argument("--unit", choices=["minutes", "cpu_seconds", "crops"], default="minutes", help="of --budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lowest", type=float, default=0.05)
    args = parser.parse_args()
    import tensorflow as tf
    from stardist.matching import matching_dataset

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    np.random.seed(args.seed)
    tf.keras.utils.set_random_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    _, images, labels = read_split(args.data / "train")
    model, spent = train_stardist(images, labels, args.output, args)
    chosen = slice(None, None, CHOICE_EVERY)
    model.optimize_thresholds(images[chosen], labels[chosen])
    valid_records, valid_images, valid_labels = read_split(args.data / "valid")
    painted = [model.predict_instances(image)[0] for image in valid_images]
    ious = [round(0.5 + 0.05 * step, 2) for step in range(9)]
    accuracy = [matching_dataset(valid_labels, painted, thresh=at, show_progress=False).accuracy for at in ious]
    row = {**spent, "seed": args.seed, "stardist50": accuracy[0], "stardist": sum(accuracy) / len(accuracy)}
    row |= {"probability": float(model.thresholds.prob), "nms": float(model.thresholds.nms)}
    print(json.dumps(row))
    (args.output / "row.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    write_results(model, valid_records, valid_images, args.lowest, args.output / "predictions.json")


if __name__ == "__main__":
    main()
