"""The pretrained network: built, loaded with clear errors, and tapped for four feature maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    DINOv3ConvNextBackbone,
    DINOv3ViTModel,
    PreTrainedModel,
    SwinBackbone,
)
from transformers.utils import cached_file

from .configuration import PYRAMID_STAGES, Mask2FormerDinov3Config

# B batch, D width of the ViT, h = H/16, w = W/16
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLASSES: dict[str, Any] = {
    "dinov3_vit": DINOv3ViTModel,
    "dinov3_convnext": DINOv3ConvNextBackbone,
    "swin": SwinBackbone,
}


def build_backbone(config: Mask2FormerDinov3Config) -> PreTrainedModel:
    """transformers' own class with random weights: `DINOv3ViTModel`, or the backbone class of a pyramid network."""
    backbone: PreTrainedModel
    if config.neck == "none":
        backbone = AutoBackbone.from_config(config.backbone_config)
    else:
        backbone = DINOv3ViTModel._from_config(config.backbone_config)
    return backbone


def unreachable_parameters(backbone: Any, config: Mask2FormerDinov3Config) -> list[nn.Parameter]:
    """Parameters that no loss can reach, so that no process group may wait for their gradient.

    DINOv3's mask token (pretraining only), its final norm when taps go without it, blocks behind the last tap, and
    the layer norm over Swin's last hidden state, which no tap reads.
    """
    model_type = config.backbone_config.model_type
    if model_type == "swin":
        return list(backbone.swin.layernorm.parameters())
    if model_type != "dinov3_vit":
        return []
    parameters = [backbone.embeddings.mask_token]
    if not config.backbone_norm:
        parameters += backbone.norm.parameters()
    for block in backbone.model.layer[config.backbone_taps[-1] :]:
        parameters += block.parameters()
    return parameters


def tapped_maps(backbone: Any, config: Mask2FormerDinov3Config, pixel_values: Tensor) -> list[Tensor]:
    """pixel_values (B, 3, H, W), H and W multiples of 32 -> four maps.

    A ViT gives (B, D, h, w) after each tapped block, class and register tokens removed, normed if `backbone_norm`; a
    pyramid network its own maps at strides 4, 8, 16, 32.
    """
    if config.neck == "none":
        return list(backbone(pixel_values).feature_maps)
    grid = (pixel_values.shape[2] // 16, pixel_values.shape[3] // 16)
    prefix = 1 + config.backbone_config.num_register_tokens
    taps = list(config.backbone_taps)
    # transformers' own forward collects the outputs of all blocks by hooks: more memory, and no one graph to compile.
    hidden_states = backbone.embeddings(pixel_values.to(backbone.dtype))  # (B, 1+R+h*w, D)
    rotations = backbone.rope_embeddings(pixel_values)
    maps = []
    for number, block in enumerate(backbone.model.layer[: taps[-1]], start=1):
        hidden_states = block(hidden_states, position_embeddings=rotations)
        if number in taps:
            tokens = backbone.norm(hidden_states) if config.backbone_norm else hidden_states
            feature_map = tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)  # (B, D, h, w), channels last
            maps += [feature_map] * taps.count(number)
    return maps


def load_backbone(source: str, token: str | None = None) -> PreTrainedModel:
    """Weights of a backbone from a local folder or a hub id, in transformers' format.

    Raises ValueError that says what to do: a gated repository without access, no network, an unknown name, a folder
    without weights, a network of another kind, weights that do not fit.
    """
    try:
        config = AutoConfig.from_pretrained(source, token=token)
        if config.model_type not in CLASSES:
            raise ValueError(
                f"backbone {source!r}: expected a DINOv3 ViT, a DINOv3 ConvNeXt or a Swin, "
                f"got model_type={config.model_type!r}"
            )
        if config.model_type != "dinov3_vit":
            config.out_features = list(PYRAMID_STAGES)
        model: PreTrainedModel
        model, report = CLASSES[config.model_type].from_pretrained(
            source, config=config, token=token, output_loading_info=True
        )
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(_explain(source, error)) from error
    expected_new = ("hidden_states_norms.", "swin.layernorm.")  # Swin as a backbone brings its own output norms
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(expected_new))
    if missing:
        raise ValueError(
            f"backbone {source!r}: {len(missing)} weights are missing, e.g. {', '.join(missing[:3])}; "
            f"the file is cut, or it holds another network than its config.json says"
        )
    return model


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _explain(source: str, error: Exception) -> str:
    """One message a user can act on, from the chain of errors that the hub client raised."""
    names = {type(link).__name__ for link in _chain(error)}
    statuses = {getattr(getattr(link, "response", None), "status_code", None) for link in _chain(error)}
    folder = "or give `backbone` a local folder with config.json and model.safetensors"
    if Path(source).exists():
        return f"backbone {source!r}: the folder could not be read as a transformers model: {error}"
    if "GatedRepoError" in names or 403 in statuses:
        return (
            f"backbone {source!r}: the repository is gated and this account has no access to it. Accept the DINOv3 "
            f"licence at https://huggingface.co/{source}, log in with `hf auth login` (or set HF_TOKEN), {folder}"
        )
    if "RepositoryNotFoundError" in names or 401 in statuses:
        return (
            f"backbone {source!r}: no such preset, folder or hub repository that this account can see. Check the "
            f"name; for a private or gated one accept its licence at https://huggingface.co/{source} and log in with "
            f"`hf auth login`, {folder}"
        )
    offline = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError"}
    if names & offline:
        return (
            f"backbone {source!r}: the hub cannot be reached from this machine and the weights are not in its cache. "
            f"Fetch them where there is a network (`hf download {source}`) and copy the folder here, {folder}"
        )
    return f"backbone {source!r}: {error}"


def is_frozen(backbone: PreTrainedModel) -> bool:
    """True when no parameter of the backbone is trained (adapters inside it count as trained)."""
    return not any(parameter.requires_grad for parameter in backbone.parameters())


def grad_mode(backbone: PreTrainedModel) -> torch.set_grad_enabled:
    """No graph and no stored activations for a frozen backbone."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen(backbone))


def pixel_statistics(source: str | None, token: str | None = None) -> tuple[list[float], list[float]]:
    """Mean and std that the weights of `source` expect, RGB in 0..1: its preprocessor_config.json's, else ImageNet's.

    DINOv3's web-image weights use ImageNet's, its satellite weights others.
    """
    if source is None:
        return IMAGENET
    file = cached_file(
        source,
        "preprocessor_config.json",
        token=token,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if file is None:
        return IMAGENET
    stored = json.loads(Path(file).read_text(encoding="utf-8"))
    return list(stored.get("image_mean", IMAGENET[0])), list(stored.get("image_std", IMAGENET[1]))
