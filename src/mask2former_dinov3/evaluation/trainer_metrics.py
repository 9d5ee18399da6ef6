"""COCO AP in transformers' Trainer, on one process or several: a data collator, and the metrics.

Trainer gathers logits and labels of all processes and waits without end where their shapes differ in more than one
dimension. `collate_padded` therefore stacks the labels of a batch, padded by rows of class -100, which the model and
`TrainerMetrics` leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..instances import Instances
from ..model.labels import PADDING_CLASS
from .coco_ap import evaluate_coco


def collate_padded(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Trainer's `data_collator`: samples of `CocoInstanceDataset` as one batch, with N the most instances of an image.

    Returns pixel_values (B, C, H, W), pixel_mask (B, H, W), mask_labels (B, N, H, W) uint8 and class_labels (B, N)
    int64, -100 in rows that are padding; N is at least 1.
    """
    batch = {name: torch.stack([one[name] for one in examples]) for name in ("pixel_values", "pixel_mask")}
    most = max(1, *(len(one["class_labels"]) for one in examples))
    masks = torch.zeros(len(examples), most, *batch["pixel_mask"].shape[1:], dtype=torch.uint8)
    classes = torch.full((len(examples), most), PADDING_CLASS)
    for own, labels, one in zip(masks, classes, examples, strict=True):
        count = len(one["class_labels"])
        own[:count], labels[:count] = one["mask_labels"], one["class_labels"]
    return batch | {"mask_labels": masks, "class_labels": classes}


class TrainerMetrics:
    """Trainer's `compute_metrics`: COCO AP on the canvas, of the images of all processes.

    Needs `batch_eval_metrics=True` in the TrainingArguments, and labels of `collate_padded`. Images are compared as
    they lie on the canvas; `mask2former-dinov3 evaluate` measures at their own size. names: those of the metrics of
    `evaluate_coco` to report.
    """

    def __init__(
        self,
        processor: Mask2FormerDinov3ImageProcessor,
        id2label: Mapping[int, str],
        names: Sequence[str] = ("AP", "AP50", "AP75"),
    ) -> None:
        self.processor, self.names = processor, tuple(names)
        self.categories = [{"id": int(label), "name": str(name)} for label, name in id2label.items()]
        self._forget()

    def _forget(self) -> None:
        self.images: list[dict[str, int]] = []
        self.truth: list[dict[str, Any]] = []
        self.results: list[Mapping[str, Any]] = []

    def __call__(self, batch: Any, compute_result: bool = True) -> dict[str, float]:
        """Take a batch, transformers' EvalPrediction; with compute_result also the metrics of all since the last."""
        class_logits, mask_logits = (torch.as_tensor(logits) for logits in batch.predictions[:2])
        mask_labels, class_labels = batch.label_ids
        outputs = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits)
        sizes = [(int(masks.shape[1]), int(masks.shape[2])) for masks in mask_labels]
        found = self.processor.post_process(outputs, sizes)
        for masks, labels, own in zip(mask_labels, class_labels, found, strict=True):
            classes = torch.as_tensor(labels).cpu()
            real = classes != PADDING_CLASS
            bitmaps = np.asarray(torch.as_tensor(masks).cpu()[real])
            true = Instances.from_masks(bitmaps, classes[real].numpy(), np.ones(int(real.sum())))
            image = len(self.images)
            self.images.append({"id": image, "height": own.height, "width": own.width})
            self.truth += [{**one, "id": len(self.truth) + index} for index, one in enumerate(true.to_coco(image), 1)]
            self.results += own.to_coco(image)
        if not compute_result:
            return {}
        content = {"images": self.images, "annotations": self.truth, "categories": self.categories}
        metrics: Mapping[str, Any] = evaluate_coco(content, self.results)
        self._forget()
        return {name: float(metrics[name]) for name in self.names}
