"""torch, onnxruntime and OpenVINO behind the interface `Network`.

B batch, C channels, Q queries, K classes
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..export.check_images import change_canvas
from ..inference.compiled_predict import compile_network
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..inference.network import Network
from ..inference.onnx_model import LOGITS, OnnxModel
from ..inference.predictor import load_network
from ..model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3Output
from .variants import Variant

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class TorchVariant(nn.Module):
    """The network of a model folder in one precision."""

    def __init__(self, network: Mask2FormerDinov3ForInstanceSegmentation, precision: str) -> None:
        """precision: of the operations that autocast lowers; the weights stay float32."""
        super().__init__()
        self.network, self.dtype = network, AUTOCAST.get(precision)
        self.config, self.device = network.config, network.device

    def forward(self, pixel_values: Tensor, *, pixel_mask: Tensor | None = None) -> Mask2FormerDinov3Output:
        """As the network, with logits in float32."""
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            output: Mask2FormerDinov3Output = self.network(pixel_values, pixel_mask=pixel_mask)
        for name in LOGITS:
            output[name] = output[name].float()
        return output


class OpenvinoModel(nn.Module):
    """An exported file in OpenVINO, on the CPU, with as many threads as torch uses."""

    device = torch.device("cpu")
    fixed = True  # it takes one size: that of its canvas

    def __init__(self, file: Path, precision: str, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        self.config = config
        hints = {
            "INFERENCE_PRECISION_HINT": OPENVINO_HINTS[precision],
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        }
        self.compiled = importlib.import_module("openvino").compile_model(file, "CPU", hints)

    def forward(self, pixel_values: Tensor, *, pixel_mask: Tensor) -> Mask2FormerDinov3Output:
        """pixel_values (B, C, H, W), pixel_mask (B, H, W) -> logits (B, Q, K+1) and (B, Q, h, w), float32."""
        found = self.compiled({"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()})
        class_logits, mask_logits = (torch.from_numpy(found[name].copy()) for name in LOGITS)
        return Mask2FormerDinov3Output(
            class_queries_logits=class_logits, masks_queries_logits=mask_logits, pixel_mask=pixel_mask
        )


@dataclass(frozen=True)
class VariantPlace:
    """Where a variant comes from: the model folder or hub id, its canvas, the device, and the folder of its files."""

    model: str
    canvas: tuple[int, int]
    device: str
    files: Path

    def file_of(self, variant: Variant) -> Path:
        """The .onnx file that the variant runs."""
        return self.files / f"{variant.file_precision}.onnx"


def load_variant(variant: Variant, place: VariantPlace) -> tuple[Network, Mask2FormerDinov3ImageProcessor]:
    """The network of a variant, and the image processor for the canvas."""
    if variant.has_file:
        processor = Mask2FormerDinov3ImageProcessor.from_pretrained(place.files)
        if variant.runtime == "onnxruntime":
            return OnnxModel(place.file_of(variant), place.device).eval(), processor
        config = Mask2FormerDinov3Config.from_pretrained(place.files)
        return OpenvinoModel(place.file_of(variant), variant.precision, config).eval(), processor
    network, processor = load_network(place.model, place.device)
    if variant.runtime == "torch-compiled":
        compile_network(network)
    return TorchVariant(network, variant.precision).eval(), change_canvas(processor, *place.canvas)
