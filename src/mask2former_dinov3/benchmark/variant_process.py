"""What runs in the process of one variant, or in the one that writes ONNX files. Its only argument is a `Task`."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..allocator import keep_freed_memory
from ..data.layout import Split
from ..evaluation.coco_ap import evaluate_coco
from ..evaluation.evaluate import predict_split, read_for_model
from ..export.check_images import prepare_reading, read_images
from ..export.onnx_check import BOUNDS, match_instances
from ..inference.image_passes import ImagePasses
from ..inference.settings import InferenceSettings
from ..instances import Instances
from .asked_process import Answer, answer_questions
from .runtimes import VariantPlace, load_variant
from .timing import memory_peak, timed
from .variant_files import VariantFiles
from .variants import REFERENCE, Variant

COMPARED_IMAGES = 8
SAME = BOUNDS["fp16"]  # for all precisions, so that they can be compared


@dataclass(frozen=True)
class Task:
    """What a process is to do, as JSON can hold it.

    variant: runtime and precision; None to write files. canvas: (height, width). files: folder of the ONNX files of the
    canvas, and of the instances of `REFERENCE`. images, annotations, calibration_images, extra_images, batch_size: see
    `BenchmarkSettings`.
    """

    model: str
    device: str
    canvas: tuple[int, int]
    files: str
    images: str
    calibration_images: str
    annotations: str | None
    extra_images: str | None
    batch_size: int
    variant: tuple[str, str] | None = None

    def words(self) -> list[str]:
        """The arguments of the interpreter that runs it."""
        return ["-m", __name__, json.dumps(asdict(self))]

    @classmethod
    def read(cls, text: str) -> Task:
        """The inverse of `words`."""
        values = json.loads(text)
        height, width = values["canvas"]
        return cls(**values | {"canvas": (height, width)})

    @property
    def place(self) -> VariantPlace:
        """Where its network comes from."""
        return VariantPlace(self.model, self.canvas, self.device, Path(self.files))


class VariantRun:
    """One variant, loaded, on the images of a task."""

    def __init__(self, task: Task, variant: Variant) -> None:
        self.task, self.variant = task, variant
        self.network, self.processor = load_variant(variant, task.place)
        prepare_reading(self.processor, Path(task.images), task.extra_images)
        self.prepared = read_images(Path(task.images), self.processor, COMPARED_IMAGES)
        batch = [self.prepared[place % len(self.prepared)] for place in range(task.batch_size)]
        self.inputs = self.processor.collate(batch)
        self.device = torch.device(task.device)
        self.turn = timed(self.run, self.device)

    @torch.no_grad()
    def run(self) -> None:
        """Pixels in main memory to logits in main memory."""
        pixels, mask = (self.inputs[name].to(self.network.device) for name in ("pixel_values", "pixel_mask"))
        output = self.network(pixels, pixel_mask=mask)
        assert output.class_queries_logits is not None
        assert output.masks_queries_logits is not None
        output.class_queries_logits.cpu()
        output.masks_queries_logits.cpu()

    def time(self) -> Answer:
        """Seconds of one batch."""
        return {"seconds": self.turn()}

    def memory(self) -> Answer:
        """Peak memory until now; none for onnxruntime on a GPU, which does not say what it allocates there."""
        counted = self.device.type == "cpu" or not self.variant.has_file
        return {"peak_gb": memory_peak(self.device) / 1e9 if counted else None}

    def compare(self) -> Answer:
        """The fraction of the instances that have a counterpart in torch in float32, by `SAME`, and their number."""
        settings = InferenceSettings(SAME.score / 2, copy_overlap=1.0)
        passes = ImagePasses(self.network, self.processor)
        step = self.task.batch_size  # other batches would be compiled again
        batches = [self.prepared[start : start + step] for start in range(0, len(self.prepared), step)]
        found = [one for batch in batches for one in passes.predict_prepared(batch, settings)]
        file = Path(self.task.files) / "reference.pickle"
        if self.variant == REFERENCE:
            file.write_bytes(pickle.dumps(found))
            return {}
        expected: list[Instances] = pickle.loads(file.read_bytes())
        matches = [match_instances(*pair, SAME) for pair in zip(expected, found, strict=True)]
        partners = np.concatenate([one.has_partner for one in matches])
        return {"instances": len(partners), "same_instances": float(partners.mean()) if len(partners) else None}

    def score(self) -> Answer:
        """AP on the annotations, at the images' own size."""
        assert self.task.annotations is not None
        split = Split("benchmark", Path(self.task.annotations), Path(self.task.images), only_images=True)
        mapped, data = read_for_model(split, self.network, self.processor)
        results = predict_split(self.network, self.processor, data, batch_size=self.task.batch_size)
        return {"AP": evaluate_coco(mapped, results)["AP"]}

    def questions(self) -> Mapping[str, Callable[[], Answer]]:
        """What it answers."""
        return {"time": self.time, "memory": self.memory, "compare": self.compare, "score": self.score}


def load_task(task: Task) -> Mapping[str, Callable[[], Answer]]:
    """The questions that the process of a task answers."""
    if task.variant is not None:
        keep_freed_memory()  # as the verbs of the command line do
        return VariantRun(task, Variant(*task.variant)).questions()
    files = VariantFiles(task.place, Path(task.calibration_images), task.extra_images)
    return {precision: partial(files.write, precision) for precision in ("fp32", "fp16", "int8")}


if __name__ == "__main__":
    answer_questions(partial(load_task, Task.read(sys.argv[1])))
