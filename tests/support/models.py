"""Small networks with random weights, their labels, and networks of other formats."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.data.coco import Category, CocoData
from mask2former_dinov3.model import (
    Mask2FormerDinov3Config,
    Mask2FormerDinov3ForInstanceSegmentation,
)
from mask2former_dinov3.model.necks import PlainNeck, SimpleFeaturePyramid

from .coco import make_table

HEAD: dict[str, Any] = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "dim_feedforward": 64,
    "num_queries": 7,
    "num_labels": 3,
    "train_num_points": 128,
}


SEEDS: dict[str, Any] = {  # what is not the published model
    "query_init": "seeds",
    "matching": "pixels",
    "mask_loss": "pixels",
    "mask_stride": 2,
}


def small_model(neck: str = "pyramid", **kwargs: Any) -> Mask2FormerDinov3ForInstanceSegmentation:
    """neck "seeds" stands for the adapter with all of SEEDS."""
    if neck == "seeds":
        neck, kwargs = "adapter", {**SEEDS, **kwargs}
    torch.manual_seed(0)
    backbone: DINOv3ViTConfig | SwinConfig
    if neck == "none":
        backbone = SwinConfig(
            embed_dim=32,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 4, 8],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    else:
        backbone = DINOv3ViTConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2, num_register_tokens=4
        )
        kwargs = {"backbone_taps": [1, 2, 3, 4], **kwargs}  # block 5 is behind the last tap
    config = Mask2FormerDinov3Config(backbone_config=backbone, neck=neck, **{**HEAD, **kwargs})
    return Mask2FormerDinov3ForInstanceSegmentation(config)


def labels(counts: list[int], height: int = 64, width: int = 96, device: str = "cpu") -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "mask_labels": [
            (torch.rand(count, height, width, generator=generator) > 0.7).to(device, torch.uint8) for count in counts
        ],
        "class_labels": [torch.randint(0, 3, (count,), generator=generator).to(device) for count in counts],
    }


def padded_mask(batch: int, height: int, width: int, real: tuple[int, int]) -> Tensor:
    mask = torch.zeros(batch, height, width)
    mask[:, : real[0], : real[1]] = 1
    return mask


def small_vit(**kwargs: object) -> DINOv3ViTConfig:
    return DINOv3ViTConfig(
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 8,
            "num_attention_heads": 2,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            **kwargs,
        }
    )


def randomised(model: DINOv3ViTModel) -> DINOv3ViTModel:
    """Every weight random, so that norms and biases count too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def small_convnext() -> DINOv3ConvNextConfig:
    return DINOv3ConvNextConfig(hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], layer_scale_init_value=0.5)


TOLERANCE = 1e-4


def hf_mask2former(**kwargs: Any) -> Mask2FormerForUniversalSegmentation:
    """A small Swin Mask2Former whose weights are all random, norms and zero-initialised layers included."""
    swin = SwinConfig(
        embed_dim=32,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = {
        "feature_size": 64,
        "mask_feature_size": 64,
        "hidden_dim": 64,
        "encoder_feedforward_dim": 96,
        "encoder_layers": 3,
        "decoder_layers": 5,
        "num_attention_heads": 4,
        "dim_feedforward": 128,
        "num_queries": 12,
        "num_labels": 4,
        "train_num_points": 256,
    }
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, **(settings | kwargs)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "sampling_offsets" in name else 0.05))
    return model.eval()


class OriginalEncoder(nn.Module):
    """What the original project (Carti-97/DINOv3-Mask2former at 6e3d071) puts where Hugging Face has the Swin: a ViT of
    transformers, tapped without its final norm, and an adapter of the shapes of our necks."""

    def __init__(self, pyramid: bool) -> None:
        super().__init__()
        self.model = randomised(DINOv3ViTModel(small_vit(num_attention_heads=1, hidden_act="silu")))
        self.adapter = (SimpleFeaturePyramid if pyramid else PlainNeck)(64, [32, 64, 128, 256])

    def forward(self, pixel_values: Tensor) -> Any:
        states = self.model(pixel_values, output_hidden_states=True).hidden_states
        grid = (pixel_values.shape[2] // 16, pixel_values.shape[3] // 16)
        taps = [states[tap][:, 5:].transpose(1, 2).unflatten(2, grid) for tap in (2, 4, 6, 8)]
        return SimpleNamespace(feature_maps=tuple(self.adapter(taps)))


def named(*names: str) -> dict[str, Any]:
    labels = {name: label for label, name in enumerate(names)}
    return {"num_labels": len(names), "label2id": labels, "id2label": {label: name for name, label in labels.items()}}


def original_model(pyramid: bool) -> Mask2FormerForUniversalSegmentation:
    model = hf_mask2former(**named("bar", "star", "disc"))
    torch.manual_seed(3)
    model.model.pixel_level_module.encoder = OriginalEncoder(pyramid)
    return model.eval()


def saved(model: Mask2FormerForUniversalSegmentation, folder: Path, old_names: bool) -> Path:
    """As their script saves it: a config that still speaks of the Swin. old_names: transformers 4's."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {key: x.contiguous() for key, x in model.state_dict().items()}
    if old_names:
        state = {key.replace(".encoder.model.model.layer.", ".encoder.model.layer."): x for key, x in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "dinov3_backbone_config.json").write_text(json.dumps({"model_file": "models/x_pyramid.py"}))
    stored = {"size": {"height": 64, "width": 96}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(stored))
    return folder


def mean_of_50_losses(dtype: torch.dtype | None, device: str = "cpu") -> float:
    """A small model trained for 50 steps on random images; every loss and gradient is finite."""
    model = small_model(encoder_layers=1, decoder_layers=2).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 3, 64, 96, generator=generator).to(device)
    batch = labels([3, 2], device=device)
    pixel_mask = padded_mask(2, 64, 96, (64, 80)).to(device)
    torch.manual_seed(1)
    losses: list[float] = []
    for step in range(50):
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(pixel_values, **batch, pixel_mask=pixel_mask).loss
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss), f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert torch.isfinite(norm), f"step {step}"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return sum(losses) / len(losses)


def saved_bytes(model: Mask2FormerDinov3ForInstanceSegmentation, **inputs: Any) -> tuple[int, dict[str, Tensor]]:
    """What autograd keeps of one forward pass, parameters aside, and the gradients after it."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).loss
    loss.backward()
    return sum(kept.values()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CATEGORIES = (Category(3, "disc"), Category(7, "bar"))
DATA = CocoData(Path("none.json"), CATEGORIES, make_table([], CATEGORIES))


def config_of(**options: Any) -> Any:
    settings = {"dataset_name": "x", "output_dir": "y", "image_height": 64, "image_width": 64, **options}
    return load_config(None, settings)[0]
