"""COCO AP of a model and of its exported file on the same images, by the evaluation that `evaluate` uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data.layout import Split
from ..errors import OptionError, mismatch
from ..evaluation.coco_files import read_ground_truth
from ..evaluation.evaluate import predict_for_score, read_for_model, score_network
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.network import Network
from ..inference.settings import InferenceSettings

# Largest difference of AP. Measured on the bundled sample (docs/export.md): fp32 and fp16 0.0000, int8 0.0062 or less,
# bf16 of OpenVINO 0.0037.
AP_TOLERANCES = {"fp32": 0.002, "fp16": 0.005, "int8": 0.02}
MAX_DETECTIONS = 100  # COCO's


@dataclass(frozen=True)
class ApComparison:
    """AP, AP50 and the number of detections of both sides. annotations: the ground truth; images: their number."""

    annotations: Path
    images: int
    model: tuple[float, float, int]
    file: tuple[float, float, int]
    tolerance: float

    def text(self) -> str:
        """A table for people."""
        lines = [f"{'':12} {'model':>9} {'file':>9} {'difference':>11}"]
        for name, ours, theirs in zip(("AP", "AP50"), self.model, self.file, strict=False):
            lines.append(f"{name:12} {ours:9.4f} {theirs:9.4f} {theirs - ours:+11.4f}")
        counts = self.model[2], self.file[2]
        lines.append(f"{'detections':12} {counts[0]:9} {counts[1]:9} {counts[1] - counts[0]:+11}")
        return "\n".join(lines)

    def differences(self) -> list[str]:
        """One sentence if AP differs by more than the tolerance."""
        ours, theirs = self.model[0], self.file[0]
        if abs(theirs - ours) <= self.tolerance:
            return []
        return [f"AP: {mismatch(f'{ours:.4f} of the model within {self.tolerance}', f'{theirs:.4f}')}"]

    def to_json(self) -> dict[str, object]:
        """The numbers, for parity.json."""
        sides = {
            name: dict(zip(("AP", "AP50", "detections"), side, strict=True))
            for name, side in (("model", self.model), ("file", self.file))
        }
        return {
            "annotations": str(self.annotations),
            "images": self.images,
            **sides,
            "limits": {"AP_difference": self.tolerance},
        }


def compare_ap(
    network: Network,
    exported: Network,
    processor: Mask2FormerDinov3ImageProcessor,
    split: Split,
    precision: str,
    *,
    progress: bool = False,
) -> ApComparison:
    """Score the model and its file on a split, both on the canvas of `processor`; numbers as `evaluate` gives them.

    precision: a key of AP_TOLERANCES. Raises DatasetError for data that cannot be read or have other classes,
    OptionError for data on which the model finds nothing: two AP of 0 agree whatever the file does.
    """
    limits = InferenceSettings(max_detections=MAX_DETECTIONS)
    mapped, data = read_for_model(split, network, processor)
    truth = read_ground_truth(mapped)
    sides: list[tuple[float, float, int]] = []
    for side in (network, exported):
        results = predict_for_score(side, processor, data, limits, progress=progress)
        metrics = score_network(side, processor, data, truth, results, limits)
        if metrics["AP"] <= 0:
            got = "no object" if metrics["AP"] < 0 else f"an AP of 0 of the {'file' if sides else 'model'}"
            if not sides:
                raise OptionError("annotations", "data on which the model finds objects", f"{split.annotations}, {got}")
        sides.append((metrics["AP"], metrics["AP50"], metrics["detections"]))
    return ApComparison(split.annotations, len(truth.images), sides[0], sides[1], AP_TOLERANCES[precision])
