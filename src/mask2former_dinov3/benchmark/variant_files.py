"""The ONNX files of one canvas, written when they are asked for: float32 first, from which the others are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..export.check_images import change_canvas, feed_of, prepare_reading, read_images
from ..export.file_metadata import build_metadata, set_metadata
from ..export.onnx_export import CALIBRATION_IMAGES, silence_exporter, trace
from ..export.precision import to_half, to_int8
from ..inference.onnx_model import data_file
from ..inference.predictor import load_network
from .asked_process import Answer
from .runtimes import VariantPlace


class VariantFiles:
    """Writes the files of a canvas, and the configuration that goes with them, into the folder `place.files`."""

    def __init__(self, place: VariantPlace, calibration_images: Path, extra_images: str | None) -> None:
        self.place = place
        self.calibration_images = calibration_images
        self.network, processor = load_network(place.model, "cpu")
        prepare_reading(processor, calibration_images, extra_images)
        self.processor = change_canvas(processor, *place.canvas)
        self.metadata = build_metadata(self.network, self.processor, Path(place.model))
        self.network.config.save_pretrained(place.files)
        self.processor.save_pretrained(place.files)
        self.full = place.files / "fp32.onnx"

    def write(self, precision: str) -> Answer:
        """Write the file of one precision."""
        target = self.place.files / f"{precision}.onnx"
        if precision == "fp32":
            trace(self.network, self.processor, target, self.metadata, dynamic=False, with_postprocess=False)
        elif precision == "fp16":
            to_half(self.full, target)
        else:
            prepared = read_images(self.calibration_images, self.processor, CALIBRATION_IMAGES)
            with silence_exporter():
                to_int8(self.full, target, (feed_of(self.processor, one) for one in prepared))
        if precision != "fp32":
            set_metadata(target, replace(self.metadata, precision=precision))
        parts = [file for file in (target, data_file(target)) if file.exists()]
        return {"file_mb": sum(file.stat().st_size for file in parts) / 1e6}
