"""What predicts: the interface that the torch network and an exported ONNX file share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from ..model import Mask2FormerDinov3Output


class NetworkConfig(Protocol):
    """What users of a network read from its configuration; names as in `Mask2FormerDinov3Config`.

    id2label: label 0..K-1 -> class name. category_ids: the data set's category id of every label. class_map: name in
    the data -> name of the class, or None for one that was left out; None: the names are the data's own. num_channels:
    C, of the images. score_threshold: default of `InferenceSettings.threshold`, for all classes or by name; None: none
    is stored. score_threshold_source: where it comes from. copy_overlap: default of `InferenceSettings.copy_overlap`.
    score_calibration: scale and shift of `ScoreCalibration`; None: scores are those of the network.
    """

    @property
    def id2label(self) -> Mapping[int, str]: ...
    @property
    def category_ids(self) -> list[int]: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def num_queries(self) -> int: ...
    @property
    def mask_stride(self) -> int: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def class_map(self) -> Mapping[str, str | None] | None: ...
    @property
    def score_threshold(self) -> float | Mapping[str, float] | None: ...
    @property
    def score_threshold_source(self) -> Mapping[str, object] | None: ...
    @property
    def copy_overlap(self) -> float | None: ...
    @property
    def score_calibration(self) -> Sequence[float] | None: ...


class Network(Protocol):
    """`Mask2FormerDinov3ForInstanceSegmentation` or `OnnxModel`: images in, logits out."""

    @property
    def config(self) -> NetworkConfig: ...
    @property
    def device(self) -> torch.device: ...

    def __call__(self, pixel_values: Tensor, *, pixel_mask: Tensor | None = None) -> Mask2FormerDinov3Output:
        """pixel_values (B, C, H, W), normalised; pixel_mask (B, H, W), non-zero on real pixels, None: all are.

        class_queries_logits (B, Q, K+1) and masks_queries_logits (B, Q, H/s, W/s), s = `config.mask_stride`.
        """
        ...

    def eval(self) -> Self: ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """The weights by their names; empty for an ONNX file."""
        ...
