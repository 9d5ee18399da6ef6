"""Run an exported file (.onnx, .pt2) instead of a model folder: a runtime behind the interface `Network`.

The file's metadata (docs/export.md) describe classes, canvas and normalisation; nothing else is needed to use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..canvas import PADDING
from ..errors import CheckpointError, mismatch
from ..model import Mask2FormerDinov3Output
from ..read_options import AS_STORED, ImageScale
from .image_processing import Mask2FormerDinov3ImageProcessor
from .onnx_session import Session, open_session

INPUTS = ("pixel_values", "pixel_mask")
LOGITS = ("class_queries_logits", "masks_queries_logits")
DETECTIONS = ("scores", "labels", "masks")

FORMAT_VERSION = 1  # of the metadata


@dataclass(frozen=True)
class OnnxMetadata:
    """The metadata of a file; each field is stored as JSON text under its name.

    producer: package -> version. classes, category_ids: name and id by label. mean, std: of the channels in 0..1.
    canvas: (height, width) that images are fitted into. precision: fp32, fp16 or int8. mask_stride: pixels of the input
    per pixel of the mask logits. licence: of `code` and of `weights`, and `weights_text` where the licence requires it.
    value_range, page, channels, image_scale: of `ReadOptions`; extra_channels: of the image processor; absent in files
    of earlier versions.
    class_map: the option `classes` of the training run. score_threshold, score_threshold_source, copy_overlap,
    score_calibration: as in the model's config.json. Files of earlier versions have none of these.
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
    value_range: str = AS_STORED.value_range
    page: int = AS_STORED.page
    channels: list[int] | str | None = None
    extra_channels: int = 0
    class_map: dict[str, str | None] | None = None
    score_threshold: float | dict[str, float] | None = None
    score_threshold_source: dict[str, Any] | None = None
    copy_overlap: float | None = None
    score_calibration: list[float] | None = None
    image_scale: ImageScale = AS_STORED.image_scale

    def to_properties(self) -> dict[str, str]:
        """The metadata as ONNX stores them: names and texts."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> OnnxMetadata:
        """The inverse of `to_properties`. Raises KeyError for a missing field, ValueError for text that is not JSON."""
        given = [field for field in fields(cls) if field.name in properties or field.default is MISSING]
        return cls(**{field.name: json.loads(properties[field.name]) for field in given})

    def processor(self) -> Mask2FormerDinov3ImageProcessor:
        """The image processor that makes inputs for the file."""
        height, width = self.canvas
        size = {"height": height, "width": width}
        return Mask2FormerDinov3ImageProcessor(
            size,
            self.mean,
            self.std,
            value_range=self.value_range,
            page=self.page,
            channels=self.channels,
            extra_channels=self.extra_channels,
            image_scale=self.image_scale,
        )


@dataclass(frozen=True)
class OnnxConfig:
    """The `NetworkConfig` of a file."""

    id2label: dict[int, str]
    category_ids: list[int]
    num_labels: int
    num_queries: int
    mask_stride: int
    class_map: dict[str, str | None] | None = None
    num_channels: int = 3
    score_threshold: float | dict[str, float] | None = None
    score_threshold_source: dict[str, Any] | None = None
    copy_overlap: float | None = None
    score_calibration: list[float] | None = None


class OnnxModel(nn.Module):
    """An .onnx or .pt2 file as a `Network`: takes tensors in main memory; the runtime copies them to its own device."""

    device = torch.device("cpu")

    def __init__(self, path: Path, device: str | torch.device | None = None, session: Session | None = None) -> None:
        """device: "cpu" or "cuda"; None for a GPU if onnxruntime has one. session: of `open_runtime`, instead of one
        that onnxruntime opens on the device.

        Raises CheckpointError for a file that `export` did not make, OptionError for a device that onnxruntime cannot
        use, MissingExtraError without onnxruntime.
        """
        super().__init__()
        self.path = path
        self.session = session or open_session(path, device)
        try:
            self.metadata = OnnxMetadata.from_properties(self.session.properties)
        except (KeyError, ValueError) as error:
            got = f"a file without its metadata ({error})"
            raise CheckpointError(f"{path}: {mismatch('a file of `mask2former-dinov3 export`', got)}") from error
        if (version := self.metadata.format_version) != FORMAT_VERSION:
            advice = "export the model again, or install the version of this package that exported it"
            raise CheckpointError(f"{path}: {mismatch(f'metadata of version {FORMAT_VERSION}', version, advice)}")
        self.config = OnnxConfig(
            id2label=dict(enumerate(self.metadata.classes)),
            category_ids=self.metadata.category_ids,
            num_labels=len(self.metadata.classes),
            num_queries=self.metadata.num_queries,
            mask_stride=self.metadata.mask_stride,
            class_map=self.metadata.class_map,
            num_channels=len(self.metadata.mean),
            score_threshold=self.metadata.score_threshold,
            score_threshold_source=self.metadata.score_threshold_source,
            copy_overlap=self.metadata.copy_overlap,
            score_calibration=self.metadata.score_calibration,
        )

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, original_sizes: object = None
    ) -> Mask2FormerDinov3Output:
        """pixel_values (B, C, H, W), normalised; pixel_mask (B, H, W), non-zero on real pixels, None: all are.

        original_sizes: ignored, so that `model(**processor(images))` works. The logits are (B, Q, K+1) and
        (B, Q, h, w), float32. Raises ValueError for a size that the file does not take.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones(pixel_values.shape[0], *pixel_values.shape[2:], dtype=torch.bool)
        self._check_inputs(pixel_values, pixel_mask)
        feed = {"pixel_values": pixel_values.float().cpu().numpy(), "pixel_mask": pixel_mask.bool().cpu().numpy()}
        class_logits, mask_logits = (torch.from_numpy(found) for found in self.run(feed, LOGITS))
        return Mask2FormerDinov3Output(
            class_queries_logits=class_logits, masks_queries_logits=mask_logits, pixel_mask=pixel_mask
        )

    @property
    def fixed(self) -> bool:
        """Whether the file takes one size only: that of its canvas."""
        return all(isinstance(side, int) for side in self.session.input_shape[2:])

    def run(self, feed: Mapping[str, NDArray[np.generic]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        """Compute the named outputs, and nothing that only the other outputs need."""
        return self.session.run(feed, names)

    def _check_inputs(self, pixel_values: Tensor, pixel_mask: Tensor) -> None:
        _, channels, *size = self.session.input_shape  # a size is a number, or a name where it is open
        expected = [channels, *size]
        got = list(pixel_values.shape[1:])
        fits = all(want == have for want, have in zip(expected, got, strict=False) if isinstance(want, int))
        if pixel_values.ndim != 4 or not fits or any(side % PADDING or side == 0 for side in got[1:]):
            wanted = " x ".join(map(str, size)) if isinstance(size[0], int) else f"multiples of {PADDING}"
            raise ValueError(
                f"{self.path}: expected pixel_values (batch, {channels}, height, width) with height x width {wanted}, "
                f"got {tuple(pixel_values.shape)}; Mask2FormerDinov3ImageProcessor pads images to that size, and "
                f"`export --dynamic` makes a file that takes all sizes"
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
        got = f"metadata that do not ({error})"
        raise CheckpointError(f"{path}: {mismatch('metadata that describe an image processor', got)}") from error


def data_file(path: Path) -> Path:
    """The path of the weights that do not fit into an .onnx file: `model.onnx.data` beside `model.onnx`."""
    return path.with_name(f"{path.name}.data")
