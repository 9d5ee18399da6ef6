"""An exported file in place of a model folder: onnxruntime behind the interface of the network.

What the file says of itself (docs/export.md) stands in its metadata; nothing else is needed to use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..canvas import PADDING
from ..errors import CheckpointError, UserError
from ..model import Mask2FormerDinov3Output
from .image_processing import Mask2FormerDinov3ImageProcessor

INPUTS = ("pixel_values", "pixel_mask")
LOGITS = ("class_queries_logits", "masks_queries_logits")
DETECTIONS = ("scores", "labels", "masks")

FORMAT_VERSION = 1  # of the metadata


@dataclass(frozen=True)
class OnnxMetadata:
    """What is written into a file, each field as JSON text under its name.

    producer: package -> version. classes, category_ids: name and id by label. mean, std: of RGB in 0..1. canvas:
    (height, width) that images are fitted into. precision: fp32, fp16 or int8. mask_stride: pixels of the input per
    pixel of the mask logits. licence: of `code`, of `weights`, and its whole text where it must travel with them.
    """

    format_version: int
    producer: dict[str, str]
    classes: list[str]
    category_ids: list[int]
    mean: list[float]
    std: list[float]
    canvas: list[int]
    precision: str
    mask_stride: int
    num_queries: int
    licence: dict[str, str]

    def to_properties(self) -> dict[str, str]:
        """As ONNX stores it: names and texts."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> OnnxMetadata:
        """Raises KeyError or ValueError when something is missing or no JSON."""
        return cls(**{field.name: json.loads(properties[field.name]) for field in fields(cls)})

    def processor(self) -> Mask2FormerDinov3ImageProcessor:
        """What makes an input of an image."""
        height, width = self.canvas
        return Mask2FormerDinov3ImageProcessor({"height": height, "width": width}, self.mean, self.std)


@dataclass(frozen=True)
class OnnxConfig:
    """What users of a network read from its configuration; the names are those of `Mask2FormerDinov3Config`."""

    id2label: dict[int, str]
    category_ids: list[int]
    num_labels: int
    num_queries: int
    mask_stride: int


class OnnxModel(nn.Module):
    """Called as the network is, with tensors in main memory; onnxruntime moves them where it computes."""

    device = torch.device("cpu")

    def __init__(self, path: Path, device: str | torch.device | None = None) -> None:
        """device: "cpu" or "cuda"; None for a GPU if onnxruntime has one.

        Raises CheckpointError for a file that is not one of ours, ValueError for a device that onnxruntime cannot use,
        UserError without onnxruntime.
        """
        super().__init__()
        self.path = path
        self.session = open_session(path, device)
        try:
            self.metadata = OnnxMetadata.from_properties(self.session.get_modelmeta().custom_metadata_map)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected an ONNX file of `mask2former-dinov3 export`, but its metadata are not ({error})"
            ) from error
        if self.metadata.format_version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: its metadata are of version {self.metadata.format_version}, this package reads "
                f"{FORMAT_VERSION}; export the model again, or use the package that made it"
            )
        self.config = OnnxConfig(
            id2label=dict(enumerate(self.metadata.classes)),
            category_ids=self.metadata.category_ids,
            num_labels=len(self.metadata.classes),
            num_queries=self.metadata.num_queries,
            mask_stride=self.metadata.mask_stride,
        )

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, original_sizes: Any = None
    ) -> Mask2FormerDinov3Output:
        """pixel_values (B, 3, H, W), normalised; pixel_mask (B, H, W), non-zero on real pixels, None: all are.

        The logits are (B, Q, K+1) and (B, Q, h, w), float32. Raises ValueError for a size that the file does not take.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones(pixel_values.shape[0], *pixel_values.shape[2:], dtype=torch.bool)
        self._check(pixel_values, pixel_mask)
        feed = {"pixel_values": pixel_values.float().cpu().numpy(), "pixel_mask": pixel_mask.bool().cpu().numpy()}
        class_logits, mask_logits = (torch.from_numpy(found) for found in self.run(feed, LOGITS))
        return Mask2FormerDinov3Output(
            class_queries_logits=class_logits, masks_queries_logits=mask_logits, pixel_mask=pixel_mask
        )

    def run(self, feed: Mapping[str, np.ndarray[Any, Any]], names: tuple[str, ...]) -> list[Any]:
        """Some of the outputs, as arrays; what the others alone need is not computed."""
        found: list[Any] = self.session.run(list(names), dict(feed))
        return found

    def _check(self, pixel_values: Tensor, pixel_mask: Tensor) -> None:
        _, channels, *size = self.session.get_inputs()[0].shape  # a size is a number, or a name where it is open
        expected = [channels, *size]
        got = list(pixel_values.shape[1:])
        fits = all(want == have for want, have in zip(expected, got, strict=False) if isinstance(want, int))
        if pixel_values.ndim != 4 or not fits or any(side % PADDING or side == 0 for side in got[1:]):
            wanted = " x ".join(map(str, size)) if isinstance(size[0], int) else f"multiples of {PADDING}"
            raise ValueError(
                f"{self.path}: expected pixel_values (batch, 3, height, width) with height x width {wanted}, got "
                f"{tuple(pixel_values.shape)}; Mask2FormerDinov3ImageProcessor makes them, `export --dynamic` a file "
                f"for all sizes"
            )
        if pixel_mask.shape != (pixel_values.shape[0], *pixel_values.shape[2:]):
            raise ValueError(
                f"pixel_mask: expected shape {(pixel_values.shape[0], *pixel_values.shape[2:])}, got "
                f"{tuple(pixel_mask.shape)}"
            )


def load_onnx(
    path: Path, device: str | torch.device | None = None
) -> tuple[OnnxModel, Mask2FormerDinov3ImageProcessor]:
    """A file and the image processor that its metadata describe. Raises as `OnnxModel`."""
    model = OnnxModel(path, device)
    try:
        return model.eval(), model.metadata.processor()
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its metadata describe no image processor ({error})") from error


def data_file(path: Path) -> Path:
    """Where an .onnx file has its weights if they do not fit into it: `model.onnx.data` beside `model.onnx`."""
    return path.with_name(f"{path.name}.data")


def open_session(path: Path, device: str | torch.device | None = None) -> Any:
    """onnxruntime's session of a file, with as many threads as torch takes."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path}: needs onnxruntime; pip install 'mask2former-dinov3[export]'") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind = torch.device(device or ("cuda" if has_cuda else "cpu"))
    if kind.type not in ("cpu", "cuda") or (kind.type == "cuda" and not has_cuda):
        raise ValueError(
            f"device: {device} cannot be used for an .onnx file here; this onnxruntime knows "
            f"{', '.join(onnxruntime.get_available_providers())}. Try cpu, or install onnxruntime-gpu for cuda"
        )
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": kind.index or 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors share no class of their own, and one of a cut file may be any of them
        raise CheckpointError(
            f"{path}: cannot be read as an ONNX file: it is none, is cut short, or its .data file is missing; "
            f"`export` makes one ({str(error).splitlines()[0]})"
        ) from error
