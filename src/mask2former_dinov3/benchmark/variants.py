"""The runtimes and precisions that a model can be measured in, and why one of them cannot run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..canvas import check_canvas
from ..data.layout import missing_path
from ..errors import OptionError
from ..extras import is_installed
from ..inference.predictor import cpu_has_bf16
from .runtime_names import PRECISIONS_OF, RUNTIME_PRECISIONS, RUNTIMES

EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Variant:
    """One runtime (of `RUNTIMES`) in one precision (of `RUNTIME_PRECISIONS`)."""

    runtime: str
    precision: str

    @property
    def has_file(self) -> bool:
        """Whether it runs an exported .onnx file."""
        return not self.runtime.startswith("torch")

    @property
    def file_precision(self) -> str:
        """The precision of that file: OpenVINO makes bf16 from the float32 file by itself."""
        return "fp32" if self.precision == "bf16" else self.precision


REFERENCE = Variant("torch", "fp32")


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    canvases: (height, width); empty for the model's own. runtimes, precisions: see `RUNTIMES`. device: None for a GPU
    if there is one. repeat: timed rounds. images: folder of the images, None for the bundled sample. annotations: COCO
    file of these images, for AP. calibration_images: for int8, None for `images`. extra_images: see `ReadOptions`.
    Raises OptionError for a value that cannot be.
    """

    canvases: tuple[tuple[int, int], ...] = ()
    runtimes: tuple[str, ...] = RUNTIMES
    precisions: tuple[str, ...] = RUNTIME_PRECISIONS
    device: str | None = None
    batch_size: int = 1
    repeat: int = 20
    images: Path | None = None
    annotations: Path | None = None
    calibration_images: Path | None = None
    extra_images: str | None = None

    def __post_init__(self) -> None:
        for canvas in self.canvases:
            check_canvas(*canvas, options=("size", "size"))
        for name, values, known in (
            ("runtime", self.runtimes, RUNTIMES),
            ("precision", self.precisions, RUNTIME_PRECISIONS),
        ):
            if unknown := [value for value in values if value not in known]:
                raise OptionError(name, f"some of {', '.join(known)}", unknown[0])
        for name, number in (("batch_size", self.batch_size), ("repeat", self.repeat)):
            if number < 1:
                raise OptionError(name, "a whole number above 0", number)
        if self.annotations is not None and self.images is None:
            raise OptionError("images", "the folder with the images of the annotations", "none")
        if self.annotations is not None and not self.annotations.is_file():
            raise missing_path("annotations", [self.annotations], "file")
        for option in ("images", "calibration_images"):
            folder: Path | None = getattr(self, option)
            if folder is not None and not folder.is_dir():
                raise missing_path(option, [folder], "folder")

    def variants(self) -> list[Variant]:
        """Those to measure, `REFERENCE` first, with which all others are compared."""
        chosen = [
            Variant(runtime, precision)
            for runtime in RUNTIMES
            for precision in PRECISIONS_OF[runtime]
            if runtime in self.runtimes and precision in self.precisions
        ]
        return [REFERENCE, *(one for one in chosen if one != REFERENCE)]


def why_unavailable(variant: Variant, device: torch.device) -> str | None:
    """Why a variant cannot run on this machine, None if it may."""
    missing = [name for name in EXPORT_PACKAGES if variant.has_file and not is_installed(name)]
    if missing:
        return f"needs {' and '.join(missing)}: pip install 'mask2former-dinov3[export]'"
    if variant.runtime == "openvino" and not is_installed("openvino"):
        return "not installed: pip install openvino"
    if variant.runtime == "openvino" and device.type != "cpu":
        return "measured on a CPU only: add --device cpu"
    if variant.precision == "fp16" and device.type == "cpu" and not variant.has_file:
        return "fp16 needs a GPU"
    if variant.precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        return "this CPU has no instructions for bf16"
    if variant.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        return "this GPU has no instructions for bf16"
    return None
