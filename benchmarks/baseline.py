"""The baseline: Hugging Face Mask2Former with a DINOv3 ViT and a pyramid instead of Swin.

Built from transformers' classes at the sizes of our own presets, with random weights; and the data and evaluation path
around it: pycocotools and `Mask2FormerImageProcessorPil`. No torchvision.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from transformers import (
    AutoModel,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from mask2former_dinov3.model import Mask2FormerDinov3Config

# The fields of the head that have the same name and meaning in both configurations.
HEAD_FIELDS = (
    *("num_labels", "num_queries", "feature_size", "mask_feature_size", "hidden_dim", "num_attention_heads"),
    *("encoder_layers", "encoder_feedforward_dim", "decoder_layers", "dim_feedforward", "use_auxiliary_loss"),
    *("no_object_weight", "class_weight", "mask_weight", "dice_weight"),
    *("train_num_points", "oversample_ratio", "importance_sample_ratio"),
)
VIT_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("use_gated_mlp", "hidden_act"),
)


class PyramidEncoder(nn.Module):
    """Image to four maps at strides 4, 8, 16, 32: a DINOv3 ViT, four of its blocks resampled and projected."""

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__()
        self.vit = AutoModel.from_config(copy.deepcopy(config.backbone_config))
        self.taps = list(config.backbone_taps)
        self.prefix = 1 + config.backbone_config.num_register_tokens
        width: int = config.backbone_config.hidden_size
        finest = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            nn.GroupNorm(32, width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        )
        self.scales = nn.ModuleList(
            [finest, nn.ConvTranspose2d(width, width // 2, 2, 2), nn.Identity(), nn.MaxPool2d(2)]
        )
        widths = (width // 4, width // 2, width, width)
        self.projections = nn.ModuleList(
            nn.Conv2d(inner, outer, 1) for inner, outer in zip(widths, config.neck_channels or (), strict=True)
        )

    def forward(self, pixel_values: Tensor) -> Any:
        """pixel_values (B, 3, H, W) -> BackboneOutput with four maps, finest first."""
        grid = (pixel_values.shape[2] // 16, pixel_values.shape[3] // 16)
        states = self.vit(pixel_values, output_hidden_states=True).hidden_states
        maps = [states[tap][:, self.prefix :].mT.unflatten(2, grid) for tap in self.taps]
        paths = zip(maps, self.scales, self.projections, strict=True)
        return BackboneOutput(feature_maps=tuple(project(scale(x)) for x, scale, project in paths))


def build_baseline(config: Mask2FormerDinov3Config, train_backbone: bool = False) -> Any:
    """`Mask2FormerForUniversalSegmentation` of the same sizes as ours, neck included."""
    stub = SwinConfig(embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])  # any: replaced below
    stub.out_features = ["stage1", "stage2", "stage3", "stage4"]
    fields = {name: getattr(config, name) for name in HEAD_FIELDS}
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=stub, **fields))
    level = model.model.pixel_level_module
    level.encoder = PyramidEncoder(config)
    level.decoder = Mask2FormerPixelDecoder(model.config, list(config.neck_channels or ()))
    level.decoder.apply(model._init_weights)
    level.encoder.vit.requires_grad_(train_backbone)
    return model


def build_eomt(config: Mask2FormerDinov3Config, size: int) -> Any:
    """transformers' EoMT (arXiv:2503.19108) with the same ViT and queries, for images of size x size.

    Its masked attention is off, as training leaves it: mask annealing brings the probability to 0.
    """
    fields = {name: getattr(config.backbone_config, name) for name in VIT_FIELDS}
    model = EomtDinov3ForUniversalSegmentation(
        EomtDinov3Config(image_size=size, num_queries=config.num_queries, num_labels=config.num_labels, **fields)
    )
    model.attn_mask_probs.zero_()
    return model


def read_annotations(dataset: Path) -> COCO:
    """`_annotations.coco.json` of a folder, by pycocotools; annotation ids from 1 on, since it misreads id 0."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(dataset / "_annotations.coco.json"))
        for number, annotation in enumerate(coco.dataset["annotations"], start=1):
            annotation["id"] = number
        coco.createIndex()
    return coco


def processor_of(size: int) -> Any:
    """Hugging Face's processor for a square of `size` pixels (it squeezes images into it).

    No ignore_index: the usual 255 would also be the 255th instance of an image.
    """
    return Mask2FormerImageProcessorPil(size={"height": size, "width": size}, ignore_index=None)


def read_sample(coco: COCO, dataset: Path, image_id: int, processor: Any) -> Any:
    """One training sample the usual way: every instance a mask at the image's own size, joined in a map of ids."""
    record = coco.imgs[image_id]
    image = np.asarray(Image.open(dataset / record["file_name"]).convert("RGB"))
    instances = np.zeros(image.shape[:2], dtype=np.int32)
    classes = {0: 0}
    for number, annotation in enumerate(coco.imgToAnns[image_id], start=1):
        instances[coco.annToMask(annotation) > 0] = number
        classes[number] = annotation["category_id"]
    return processor(
        images=[image], segmentation_maps=[instances], instance_id_to_semantic_id=classes, return_tensors="pt"
    )


def results_of(
    processor: Any, outputs: Any, image_id: int, size: tuple[int, int], category_ids: list[int]
) -> list[dict[str, Any]]:
    """COCO results of one image of `size` (height, width), through Hugging Face's binary maps."""
    found = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=[size], return_binary_maps=True
    )[0]
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[segment["label_id"]],
            "segmentation": rle_codec.encode(np.asfortranarray(mask.numpy().astype(np.uint8))),
            "score": segment["score"],
        }
        for mask, segment in zip(found["segmentation"], found["segments_info"], strict=False)
    ]


def average_precision(
    coco: COCO, results: Sequence[Mapping[str, Any]], image_ids: list[int], max_detections: int
) -> float:
    """Mask AP of COCO results by pycocotools, on these images; -1 without ground truth."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes([dict(result) for result in results]) if results else COCO()
        evaluation = COCOeval(coco, found, "segm")
        evaluation.params.imgIds = image_ids
        evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0


def random_images(batch: int, size: int, device: str) -> Tensor:
    """(batch, 3, size, size) float32, the same in every process."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
