"""Where a backbone's weights come from: a folder, a file or a hub id, in the format of transformers, timm or Meta."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    DINOv3ConvNextBackbone,
    DINOv3ConvNextModel,
    DINOv3ViTModel,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SwinBackbone,
)
from transformers.utils import cached_file

from ..model.configuration import IMAGENET, PYRAMID_STAGES, VIT_SHAPES, Mask2FormerDinov3Config
from ..model.modeling import Mask2FormerDinov3ForInstanceSegmentation
from .files import read_json, read_weights, shapes_of
from .formats import from_origin
from .loading import load_config, load_pretrained

SATELLITE = ([0.430, 0.411, 0.296], [0.213, 0.156, 0.143])  # of the weights trained on SAT-493M (dinov3, README)
SATELLITE_NAMES = ("sat493m", "eadcf0ff", "a6675841")  # in the names of Meta's and timm's files
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
CLASSES: dict[str, Any] = {
    "dinov3_vit": DINOv3ViTModel,
    "dinov3_convnext": DINOv3ConvNextBackbone,
    "swin": SwinBackbone,
}


def from_backbone(
    backbone: str, token: str | None = None, **config_kwargs: Any
) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A new head on a backbone: a preset name (random weights), a local folder or a hub id.

    config_kwargs: fields of `Mask2FormerDinov3Config`. Raises ValueError when the backbone cannot be loaded (see
    `load_backbone`).
    """
    if backbone in VIT_SHAPES:
        return Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config.preset(backbone, **config_kwargs))
    pretrained = load_backbone(backbone, token)
    if pretrained.config.model_type != "dinov3_vit":
        config_kwargs = {**config_kwargs, "neck": "none"}
    config = Mask2FormerDinov3Config(backbone_config=pretrained.config, backbone_source=backbone, **config_kwargs)
    model = Mask2FormerDinov3ForInstanceSegmentation(config)
    model.backbone.load_state_dict(pretrained.state_dict())
    return model


def load_backbone(source: str, token: str | None = None) -> PreTrainedModel:
    """A pretrained backbone from a local folder, a file of weights or a hub id.

    transformers' DINOv3 ViT, DINOv3 ConvNeXt or Swin, or a Mask2Former whose Swin encoder is taken; timm's DINOv3
    (`timm/...` or `.safetensors`); Meta's DINOv3 (`.pth`). Raises ValueError that says what to do: a gated repository
    without access, no network, an unknown name, a folder without weights, a network of another kind, a cut file.
    """
    try:
        description, weights = _found(source, token)
        if weights is not None:
            return _of_origin(weights)
        kind = description.get("model_type")
        if kind == "mask2former":
            config = load_config(source, token)
            whole: Any = load_pretrained(Mask2FormerForUniversalSegmentation, source, config, token)
            encoder: PreTrainedModel = whole.model.pixel_level_module.encoder
            return encoder
        if kind not in CLASSES:
            raise ValueError(f"expected a DINOv3 ViT, a DINOv3 ConvNeXt or a Swin, got model_type={kind!r}")
        return _of_transformers(source, kind, token)
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(explain(source, error)) from error
    except ValueError as error:
        raise ValueError(f"backbone {source!r}: {error}") from error


def pixel_statistics(source: str | None, token: str | None = None) -> tuple[list[float], list[float]]:
    """Mean and std that the weights of `source` expect, RGB in 0..1: those that travel with them, else ImageNet's.

    DINOv3's web-image weights use ImageNet's, its satellite weights others: transformers' folders say so in
    preprocessor_config.json, timm's in config.json, a bare file in its name, and Meta's ViT-L in its untied norm.
    """
    if source is None:
        return IMAGENET
    try:
        description, weights = _found(source, token)
    except (OSError, ValueError):
        return IMAGENET
    if "pretrained_cfg" in description:
        own = description["pretrained_cfg"]
        return list(own.get("mean", IMAGENET[0])), list(own.get("std", IMAGENET[1]))
    if weights is not None:
        return SATELLITE if _is_satellite(weights) else IMAGENET
    file = cached_file(
        source,
        "preprocessor_config.json",
        token=token,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    stored = {} if file is None else read_json(Path(file))
    return list(stored.get("image_mean", IMAGENET[0])), list(stored.get("image_std", IMAGENET[1]))


def is_path(source: str) -> bool:
    """Whether a source is a file or folder, there or not, rather than a hub id."""
    path = Path(source)
    looks = path.suffix in WEIGHT_SUFFIXES or source.startswith((".", "/", "~")) or source.count("/") != 1
    return looks or path.exists()


def _found(source: str, token: str | None) -> tuple[dict[str, Any], Path | None]:
    """The source's config.json, empty where there is none; its file of weights where transformers cannot read it."""
    path = Path(source)
    if is_path(source) and not path.exists():
        raise ValueError("no such file or folder; a hub id is USER/NAME")
    if path.is_file():
        return {}, path
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise OSError(f"no config.json, and {len(files)} files of weights ({names}) where one was expected")
        return {}, files[0]
    description = read_json(Path(str(cached_file(source, "config.json", token=token))))
    if "architecture" in description and "model_type" not in description:  # timm's
        return description, Path(str(cached_file(source, "model.safetensors", token=token)))
    return description, None


def _of_origin(path: Path) -> PreTrainedModel:
    """transformers' network with the weights of a file of Meta's or timm's."""
    state = read_weights(path)
    try:
        config, converted = from_origin(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if config.model_type != "dinov3_vit":
        config.out_features = list(PYRAMID_STAGES)
    model: PreTrainedModel = CLASSES[config.model_type]._from_config(config)
    model.load_state_dict(_without_final_norm(converted))
    return model


def whole_state(source: str, model: PreTrainedModel, token: str | None = None) -> dict[str, Tensor]:
    """The state dict of a backbone with the final norm that a ConvNeXt's feature maps do without, for conversion."""
    state: dict[str, Tensor] = dict(model.state_dict())
    if model.config.model_type != "dinov3_convnext":
        return state
    weights = _found(source, token)[1]
    if weights is not None:
        return from_origin(read_weights(weights))[1]
    return dict(load_pretrained(DINOv3ConvNextModel, source, load_config(source, token), token).state_dict())


def _without_final_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith("layer_norm.")}


def _of_transformers(source: str, kind: str, token: str | None) -> PreTrainedModel:
    config = load_config(source, token)
    if kind != "dinov3_vit":
        config.out_features = list(PYRAMID_STAGES)
    # Swin as a backbone brings its own output norms.
    return load_pretrained(CLASSES[kind], source, config, token, may_lack=("hidden_states_norms.", "swin.layernorm."))


def _is_satellite(weights: Path) -> bool:
    """By the file's name; or Meta's ViT-L, of which only the satellite model has an untied norm (dinov3/hub)."""
    if any(name in weights.name.lower() for name in SATELLITE_NAMES):
        return True
    return shapes_of(weights).get("local_cls_norm.weight") == (1024,)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def explain(source: str, error: Exception) -> str:
    """One message a user can act on, from the chain of errors that the hub client raised."""
    names = {type(link).__name__ for link in _chain(error)}
    statuses = {getattr(getattr(link, "response", None), "status_code", None) for link in _chain(error)}
    folder = "or give a local folder with config.json and model.safetensors, or Meta's .pth file"
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
