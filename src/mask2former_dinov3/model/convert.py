"""Weights of Hugging Face's Mask2Former in our names. One table; a key that no row explains is an error."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .configuration import Mask2FormerDinov3Config
from .modeling import Mask2FormerDinov3ForInstanceSegmentation

# (pattern of Hugging Face's key, ours). None: dropped on purpose.
TABLE: list[tuple[str, str | None]] = [
    (r"model\.pixel_level_module\.encoder\.(.+)", r"backbone.\1"),
    (r"model\.pixel_level_module\.decoder\.encoder\.layers\.(.+)", r"head.pixel_decoder.layers.\1"),
    (r"model\.pixel_level_module\.decoder\.adapter_1\.(.+)", r"head.pixel_decoder.lateral.\1"),
    (r"model\.pixel_level_module\.decoder\.layer_1\.(.+)", r"head.pixel_decoder.output.\1"),
    (
        r"model\.pixel_level_module\.decoder\.(input_projections|level_embed|mask_projection)(.*)",
        r"head.pixel_decoder.\1\2",
    ),
    (r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)", r"mask_embedder[\1].\2"),
    (r"model\.transformer_module\.decoder\.(.+)", r"head.transformer_decoder.\1"),
    (r"model\.transformer_module\.(.+)", r"head.transformer_decoder.\1"),
    (r"class_predictor\.(.+)", r"head.transformer_decoder.class_predictor.\1"),
    (r"criterion\.empty_weight", None),
]
# fmt: off
CONFIG_FIELDS = (  # what both configurations call by the same name
    "feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "activation_function",
    "encoder_layers", "decoder_layers", "num_attention_heads", "dim_feedforward", "enforce_input_projection",
    "num_queries", "no_object_weight", "class_weight", "mask_weight", "dice_weight", "train_num_points",
    "oversample_ratio", "importance_sample_ratio", "use_auxiliary_loss", "init_std", "init_xavier_std",
)
# fmt: on
# Their shape follows the classes and the number of queries, so they may be new in the model that takes the head over.
RESHAPED = {
    f"head.transformer_decoder.{name}"
    for name in ("class_predictor.weight", "class_predictor.bias", "queries_features.weight", "queries_embedder.weight")
}


def convert_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's state dict under our names. Raises ValueError that lists the keys no row of the table explains."""
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        for pattern, replacement in TABLE:
            match = re.fullmatch(pattern, key)
            if match is None:
                continue
            if replacement is not None:
                converted.update(_split_attention(_mask_embedder(match.expand(replacement)), tensor))
            break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{len(unknown)} keys are not those of a Hugging Face Mask2Former: {', '.join(unknown[:10])}")
    return converted


def _mask_embedder(key: str) -> str:
    """Layer i of the perceptron is entry 2i of our Sequential, activations standing between."""
    found = re.fullmatch(r"mask_embedder\[(\d)\]\.(.+)", key)
    return key if found is None else f"head.transformer_decoder.mask_embedder.{2 * int(found[1])}.{found[2]}"


def _split_attention(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """nn.MultiheadAttention keeps query, key and value weights in one tensor; ours are three layers."""
    found = re.fullmatch(r"(.+\.cross_attn\.)in_proj_(weight|bias)", key)
    if found is None:
        return {key: tensor}
    return {f"{found[1]}{part}_proj.{found[2]}": x for part, x in zip("qkv", tensor.chunk(3), strict=True)}


def _check_supported(hf_config: object) -> None:
    refused = {
        "pre_norm": (False, getattr(hf_config, "pre_norm", False)),
        "dropout": (0.0, float(getattr(hf_config, "dropout", 0.0))),
        "common_stride": (4, getattr(hf_config, "common_stride", 4)),
        "feature_strides": ([4, 8, 16, 32], list(getattr(hf_config, "feature_strides", (4, 8, 16, 32)))),
    }
    faults = [f"  {name}: expected {want}, got {got}" for name, (want, got) in refused.items() if want != got]
    if faults:
        raise ValueError("this Mask2Former uses what is not supported here:\n" + "\n".join(faults))


def from_mask2former(hf_model: PreTrainedModel, **config_kwargs: Any) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A Hugging Face `Mask2FormerForUniversalSegmentation` as a model of ours.

    As it stands, the whole model is taken over, Swin backbone included (`neck="none"`): same logits. With
    `backbone_config=…` the head is taken over and the backbone and neck are new; with other `num_labels`, `id2label`
    or `num_queries` the layers they shape are new as well. Raises ValueError for what is not supported, by name.
    """
    hf_config = hf_model.config
    _check_supported(hf_config)
    fields = {name: getattr(hf_config, name) for name in CONFIG_FIELDS}
    fields |= {"id2label": hf_config.id2label, "label2id": hf_config.label2id}
    state = convert_keys(hf_model.state_dict())
    if {"num_labels", "id2label", "category_ids"} & config_kwargs.keys():
        fields = {k: v for k, v in fields.items() if k not in ("id2label", "label2id")}
    if "backbone_config" in config_kwargs:
        channels = hf_model.model.pixel_level_module.encoder.channels
        fields |= {"neck_channels": list(channels)}
        state = {key: tensor for key, tensor in state.items() if not key.startswith("backbone.")}
    else:
        fields |= {"backbone_config": hf_config.backbone_config, "neck": "none"}
    model = Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config(**{**fields, **config_kwargs}))
    own = model.state_dict()
    state = {key: x for key, x in state.items() if not (key in RESHAPED and own[key].shape != x.shape)}
    report = model.load_state_dict(state, strict=False)
    new_parts = ("backbone.", "neck.") if "backbone_config" in config_kwargs else ()
    missing = [key for key in report.missing_keys if key not in RESHAPED and not key.startswith(new_parts)]
    if missing or report.unexpected_keys:
        raise ValueError(f"weights do not fit: missing {missing[:5]}, unexpected {report.unexpected_keys[:5]}")
    return model
