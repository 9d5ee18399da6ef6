"""Load a pretrained backbone from a folder, a file or a hub id, in the format of transformers, timm or Meta."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import (
    DINOv3ConvNextBackbone,
    DINOv3ConvNextModel,
    DINOv3ViTModel,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SwinBackbone,
)

from ..errors import CheckpointError, ConfigError, UserError, mismatch
from ..json_files import read_json_object
from ..model.configuration import IMAGENET, PYRAMID_STAGES, VIT_SHAPES, Mask2FormerDinov3Config
from ..model.modeling import Mask2FormerDinov3ForInstanceSegmentation
from .files import read_weights, shapes_of
from .formats import from_origin
from .input_channels import widen_backbone, with_channels
from .loading import (
    WEIGHT_SUFFIXES,
    check_source,
    check_statistics,
    find_file,
    load_network_config,
    load_pretrained,
    read_source_json,
)

SATELLITE = ([0.430, 0.411, 0.296], [0.213, 0.156, 0.143])  # of the weights trained on SAT-493M (dinov3, README)
SATELLITE_NAMES = ("sat493m", "eadcf0ff", "a6675841")  # in the names of Meta's and timm's files
CLASSES: dict[str, type[PreTrainedModel]] = {
    "dinov3_vit": DINOv3ViTModel,
    "dinov3_convnext": DINOv3ConvNextBackbone,
    "swin": SwinBackbone,
}


def from_backbone(
    backbone: str, token: str | None = None, num_channels: int = 3, **config_kwargs: object
) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A model with a new head on a backbone: a preset name (random weights), or a source of `load_backbone`.

    num_channels: of the images; weights for RGB are widened for others (`input_channels`). config_kwargs: fields of
    `Mask2FormerDinov3Config`. Raises ConfigError for fields that this architecture does not support, CheckpointError or
    HubError when the backbone cannot be loaded.
    """
    if backbone in VIT_SHAPES:
        if num_channels != 3:
            preset = Mask2FormerDinov3Config.preset(backbone).backbone_config
            config_kwargs = {"backbone_config": with_channels(preset, num_channels), **config_kwargs}
        return Mask2FormerDinov3ForInstanceSegmentation(_build_config(backbone, config_kwargs))
    pretrained = widen_backbone(load_backbone(backbone, token), num_channels)
    if pretrained.config.model_type != "dinov3_vit":
        config_kwargs = {**config_kwargs, "neck": "none"}
    fields = {"backbone_config": pretrained.config, "backbone_source": backbone, **config_kwargs}
    model = Mask2FormerDinov3ForInstanceSegmentation(_build_config(None, fields))
    model.backbone.load_state_dict(pretrained.state_dict())
    return model


def _build_config(preset: str | None, fields: Mapping[str, object]) -> Mask2FormerDinov3Config:
    """The network's configuration; turns its refusal of the caller's fields into a ConfigError."""
    try:
        return Mask2FormerDinov3Config.preset(preset, **fields) if preset else Mask2FormerDinov3Config(**fields)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_backbone(source: str, token: str | None = None) -> PreTrainedModel:
    """A pretrained backbone from a local folder, a file of weights or a hub id.

    Reads transformers' DINOv3 ViT, DINOv3 ConvNeXt and Swin, the Swin encoder of a Mask2Former, timm's DINOv3
    (`timm/...` or `.safetensors`), and Meta's DINOv3 (`.pth`). Raises CheckpointError (no such file, no or damaged
    weights, another network) or HubError (no access, no network, an unknown name); both name `source`.
    """
    description, weights = _locate(source, token)
    if weights is not None:
        return _load_origin(weights)
    kind = description.get("model_type")
    if kind == "mask2former":
        config = load_network_config(source, token)
        whole = load_pretrained(Mask2FormerForUniversalSegmentation, source, config, token)
        encoder: PreTrainedModel = whole.model.pixel_level_module.encoder
        return encoder
    if not isinstance(kind, str) or kind not in CLASSES:
        expected = "a DINOv3 ViT, a DINOv3 ConvNeXt or a Swin"
        raise CheckpointError(f"{source}: {mismatch(expected, f'model_type {kind!r} in config.json')}")
    config = load_network_config(source, token)
    if kind != "dinov3_vit":
        config.out_features = list(PYRAMID_STAGES)
    # As a backbone, a Swin has output norms that its file does not hold.
    return load_pretrained(CLASSES[kind], source, config, token, may_lack=("hidden_states_norms.", "swin.layernorm."))


def pixel_statistics(source: str | None, token: str | None = None) -> tuple[list[float], list[float]]:
    """Mean and std that the weights of `source` expect, RGB in 0..1; ImageNet's if it does not say.

    DINOv3's weights trained on web images use ImageNet's, those trained on satellite images others. Folders of
    transformers store them in preprocessor_config.json, those of timm in config.json; a bare file tells them by its
    name, and Meta's satellite ViT-L by its untied norm. Raises CheckpointError for a preprocessor_config.json that is
    not JSON, and for values that are not three numbers.
    """
    if source is None:
        return IMAGENET
    try:
        description, weights = _locate(source, token)
    except UserError:
        return IMAGENET
    if "pretrained_cfg" in description:
        return _statistics_of(f"{source}: config.json: pretrained_cfg", description["pretrained_cfg"], "mean", "std")
    if weights is not None:
        return SATELLITE if _is_satellite(weights) else IMAGENET
    try:
        file = find_file(source, "preprocessor_config.json", token)
    except UserError:
        return IMAGENET
    if file is None:
        return IMAGENET
    stored = read_json_object(file, raises=CheckpointError)
    return _statistics_of(f"{source}: {file.name}", stored, "image_mean", "image_std")


def _statistics_of(where: str, stored: object, mean: str, std: str) -> tuple[list[float], list[float]]:
    values = stored if isinstance(stored, Mapping) else {}
    check_statistics(where, values, mean, std)
    return list(values.get(mean, IMAGENET[0])), list(values.get(std, IMAGENET[1]))


def _locate(source: str, token: str | None) -> tuple[dict[str, object], Path | None]:
    """The source's config.json, empty if it has none, and its file of weights if transformers cannot read it."""
    check_source(source, "a folder, a file of weights or a hub id")
    path = Path(source)
    if path.is_file():
        return {}, path
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(files) != 1:
            names = f" ({', '.join(file.name for file in files)})" if files else ""
            got = f"no config.json and {len(files)} files of weights{names}"
            raise CheckpointError(f"{source}: {mismatch('config.json, or one file of weights', got)}")
        return {}, files[0]
    description = read_source_json(source, "config.json", token)
    if "architecture" in description and "model_type" not in description:  # timm's
        return description, find_file(source, "model.safetensors", token)
    return description, None


def _load_origin(path: Path) -> PreTrainedModel:
    """transformers' network with the weights of a file of Meta's or timm's."""
    state = read_weights(path)
    try:
        config, converted = from_origin(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if config.model_type != "dinov3_vit":
        config.out_features = list(PYRAMID_STAGES)
    model: PreTrainedModel = CLASSES[config.model_type]._from_config(config)
    model.load_state_dict({key: x for key, x in converted.items() if not key.startswith("layer_norm.")})
    return model


def load_whole_state(source: str, model: PreTrainedModel, token: str | None = None) -> dict[str, Tensor]:
    """The state dict of a loaded backbone, with the final norm that a ConvNeXt's feature maps do not need."""
    state: dict[str, Tensor] = dict(model.state_dict())
    if model.config.model_type != "dinov3_convnext":
        return state
    weights = _locate(source, token)[1]
    if weights is not None:
        return from_origin(read_weights(weights))[1]
    config = load_network_config(source, token)
    return dict(load_pretrained(DINOv3ConvNextModel, source, config, token).state_dict())


def _is_satellite(weights: Path) -> bool:
    """By the file's name, or by the untied norm that only the satellite model of Meta's ViT-L has (dinov3/hub)."""
    if any(name in weights.name.lower() for name in SATELLITE_NAMES):
        return True
    return shapes_of(weights).get("local_cls_norm.weight") == (1024,)
