"""Weights of Hugging Face's Mask2Former in our names. One table; a key that no row explains is an error.

Also what becomes of a model's weights when its classes, its queries or its backbone change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, PreTrainedModel

from ..model.configuration import Mask2FormerDinov3Config
from ..model.modeling import Mask2FormerDinov3ForInstanceSegmentation
from .files import read_weights, shapes_of
from .formats import config_of_shapes
from .loading import load_config, load_pretrained, weights_file
from .name_patterns import matched, renamed

WANTED = "expected a Hugging Face Mask2Former or a model of ours (hub id or local folder)"

DECODER = "model.pixel_level_module.decoder."
TABLE = {  # Hugging Face's names, ours
    "model.pixel_level_module.encoder.**": "backbone.**",
    f"{DECODER}encoder.layers.**": "head.pixel_decoder.layers.**",
    f"{DECODER}adapter_1.**": "head.pixel_decoder.lateral.**",
    f"{DECODER}layer_1.**": "head.pixel_decoder.output.**",
    f"{DECODER}input_projections.**": "head.pixel_decoder.input_projections.**",
    f"{DECODER}level_embed": "head.pixel_decoder.level_embed",
    f"{DECODER}mask_projection.*": "head.pixel_decoder.mask_projection.*",
    **{  # of a perceptron; ours has its activations in between
        f"model.transformer_module.decoder.mask_predictor.mask_embedder.{layer}.0.*": (
            f"head.transformer_decoder.mask_embedder.{2 * layer}.*"
        )
        for layer in range(3)
    },
    "model.transformer_module.decoder.layers.**": "head.transformer_decoder.layers.**",
    "model.transformer_module.decoder.layernorm.*": "head.transformer_decoder.layernorm.*",
    "model.transformer_module.queries_features.weight": "head.transformer_decoder.queries_features.weight",
    "model.transformer_module.queries_embedder.weight": "head.transformer_decoder.queries_embedder.weight",
    "model.transformer_module.level_embed.weight": "head.transformer_decoder.level_embed.weight",
    "model.transformer_module.input_projections.**": "head.transformer_decoder.input_projections.**",
    "class_predictor.*": "head.transformer_decoder.class_predictor.*",
}
# The original DINOv3 + Mask2Former project puts a ViT and an adapter where Hugging Face has the Swin.
ORIGINAL = "model.pixel_level_module.encoder.model."
ORIGINAL_TABLE = {
    f"{ORIGINAL}model.layer.**": "backbone.model.layer.**",
    f"{ORIGINAL}layer.**": "backbone.model.layer.**",
    f"{ORIGINAL}**": "backbone.**",
    "model.pixel_level_module.encoder.adapter.**": "neck.**",
}
FUSED = ("**.cross_attn.in_proj_*", tuple(f"**.cross_attn.{part}_proj.*" for part in "qkv"))
# fmt: off
CONFIG_FIELDS = (  # what both configurations call by the same name
    "feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "activation_function",
    "encoder_layers", "decoder_layers", "num_attention_heads", "dim_feedforward", "enforce_input_projection",
    "num_queries", "no_object_weight", "class_weight", "mask_weight", "dice_weight", "train_num_points",
    "oversample_ratio", "importance_sample_ratio", "use_auxiliary_loss", "init_std", "init_xavier_std",
)
# fmt: on
# Their shape follows the classes and the number of queries.
CLASS_LAYER = tuple(f"head.transformer_decoder.class_predictor.{name}" for name in ("weight", "bias"))
QUERIES = tuple(f"head.transformer_decoder.{name}.weight" for name in ("queries_features", "queries_embedder"))
PARTS = ("backbone.", "neck.", "head.pixel_decoder.", "head.transformer_decoder.")
DINOV3_OF_ORIGINAL = {  # by the width of the ViT
    384: "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    1024: "facebook/dinov3-vitl16-pretrain-lvd1689m",
}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model under our names: what it is, and its weights.

    published: one of the published heads on a Swin, which is given up for another backbone.
    """

    config: Mask2FormerDinov3Config
    state: dict[str, Tensor]
    published: bool = False


def convert_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's state dict under our names. Raises ValueError that lists the keys that no row explains."""
    rows = [*ORIGINAL_TABLE.items(), *TABLE.items()]
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        name = renamed(key, rows)
        if name is not None:
            # nn.MultiheadAttention keeps query, key and value weights in one tensor; ours are three layers.
            parts = [part for row in FUSED[1] if (part := renamed(name, [(FUSED[0], row)])) is not None]
            converted.update(zip(parts, tensor.chunk(3), strict=True) if parts else [(name, tensor)])
        elif key != "criterion.empty_weight":
            unknown.append(key)
    if unknown:
        raise ValueError(f"{len(unknown)} keys are not those of a Hugging Face Mask2Former: {', '.join(unknown[:10])}")
    return converted


def to_mask2former(model: Mask2FormerDinov3ForInstanceSegmentation) -> Mask2FormerForUniversalSegmentation:
    """The way back, for a model of ours on a Swin: Hugging Face's own class with the same logits.

    Raises ValueError for a model that Hugging Face's code cannot compute.
    """
    config = model.config
    ours = {name: getattr(config, name) for name in ("query_init", "mask_stride")}
    if config.backbone_config.model_type != "swin" or ours != {"query_init": "learned", "mask_stride": 4}:
        raise ValueError(
            f"Hugging Face's Mask2Former has a Swin, learned queries and masks at stride 4; this model has "
            f"{config.backbone_config.model_type}, {config.query_init} queries and masks at stride {config.mask_stride}"
        )
    fields = {name: getattr(config, name) for name in (*CONFIG_FIELDS, "id2label", "label2id")}
    theirs = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=config.backbone_config, **fields))
    state: dict[str, Tensor] = dict(model.state_dict())
    for key in [key for key in state if matched(FUSED[1][0], key)]:
        names = [str(renamed(key, [(FUSED[1][0], row)])) for row in FUSED[1]]
        state[str(renamed(key, [(FUSED[1][0], FUSED[0])]))] = torch.cat([state.pop(name) for name in names])
    rows = [(ours, theirs) for theirs, ours in TABLE.items()]
    renamed_state = {str(renamed(key, rows)): tensor for key, tensor in state.items()}
    theirs.load_state_dict(renamed_state | {"criterion.empty_weight": theirs.criterion.empty_weight})
    return theirs


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


def checkpoint_of(hf_config: Any, hf_state: dict[str, Tensor]) -> Checkpoint:
    """A Hugging Face Mask2Former by its config and state dict, with its Swin or the original project's DINOv3.

    The original project's models are not what their config.json says: their encoder is a ViT with an adapter, told by
    its keys. Raises ValueError for what is not supported, by name.
    """
    _check_supported(hf_config)
    state = convert_keys(hf_state)
    fields = {name: getattr(hf_config, name) for name in CONFIG_FIELDS}
    fields |= {"id2label": hf_config.id2label, "label2id": hf_config.label2id}
    vit = {key.removeprefix("backbone."): x for key, x in state.items() if key.startswith("backbone.")}
    if "embeddings.cls_token" not in vit:
        fields |= {"backbone_config": hf_config.backbone_config, "neck": "none"}
        return Checkpoint(Mask2FormerDinov3Config(**fields), state, published=True)
    backbone_config = config_of_shapes(vit)
    fields |= {
        "backbone_config": backbone_config,
        "backbone_source": DINOV3_OF_ORIGINAL.get(backbone_config.hidden_size, "a DINOv3 ViT"),
        "backbone_norm": False,  # they tapped the blocks before the final norm
        "neck": "pyramid" if any(key.startswith("neck.resamplers.") for key in state) else "plain",
        "neck_channels": [len(state[f"neck.projections.{level}.weight"]) for level in range(4)],
        "num_queries": len(state[QUERIES[0]]),
    }
    return Checkpoint(Mask2FormerDinov3Config(**fields), state)


def from_mask2former(hf_model: PreTrainedModel, **config_kwargs: Any) -> Mask2FormerDinov3ForInstanceSegmentation:
    """A Hugging Face `Mask2FormerForUniversalSegmentation` as a model of ours.

    As it stands, the whole model is taken over, Swin backbone included (`neck="none"`): same logits. For
    `backbone_config=…` and other classes or queries see `rebuilt`. Raises ValueError for what is not supported.
    """
    return rebuilt(checkpoint_of(hf_model.config, hf_model.state_dict()), **config_kwargs)[0]


def rebuilt(checkpoint: Checkpoint, **changes: Any) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, str]:
    """The checkpoint as a model with some fields of its config changed, and a table of what became of its weights.

    With `backbone_config` backbone and neck are new. Classes of the same name keep their weights, and so do the first
    learned queries; the rest starts at random. Raises ValueError when weights are missing or of another shape.
    """
    before = checkpoint.config
    names = [name for name, kind in Mask2FormerDinov3Config.__annotations__.items() if "ClassVar" not in str(kind)]
    fields: dict[str, Any] = {name: getattr(before, name) for name in [*names, "id2label", "label2id"]}
    if {"num_labels", "id2label", "category_ids"} & changes.keys():
        fields = {key: x for key, x in fields.items() if key not in ("id2label", "label2id", "category_ids")}
    state = checkpoint.state
    new_parts: tuple[str, ...] = ()
    if "backbone_config" in changes:
        new_parts = ("backbone.", "neck.")
        state = {key: x for key, x in state.items() if not key.startswith(new_parts)}
        own = ("backbone_taps", "backbone_norm", "backbone_source", "neck", "mask_stride")
        fields = {key: x for key, x in fields.items() if key not in own}
        fields["neck_channels"] = _channels_read(state)
    model = Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config(**{**fields, **changes}))
    return model, _take_over(model, before, state, new_parts)


@torch.no_grad()
def _take_over(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    before: Mask2FormerDinov3Config,
    state: dict[str, Tensor],
    new_parts: tuple[str, ...],
) -> str:
    """Weights into the model, by the rule of `rebuilt`. Returns the table, a line per part."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(new_parts)]
    left = sorted(state.keys() - own.keys())
    wrong = [
        f"{key} {tuple(state[key].shape)} in place of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and key not in (*CLASS_LAYER, *QUERIES) and state[key].shape != tensor.shape
    ]
    faults = [
        f"{len(keys)} weights are {kind}, e.g. {', '.join(keys[:3])}"
        for kind, keys in (("missing", missing), ("left over", left), ("of another shape", wrong))
        if keys
    ]
    if faults:
        raise ValueError("; ".join(faults))
    labels = {name: label for label, name in before.id2label.items()}
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    taken: Counter[str] = Counter()
    for key, tensor in own.items():
        if key in CLASS_LAYER:
            for label, name in enumerate(names):
                if name in labels:
                    tensor[label] = state[key][labels[name]]
            tensor[-1] = state[key][-1]  # no object
        elif key in QUERIES:
            count = min(len(tensor), len(state[key]))
            tensor[:count] = state[key][:count]
        elif key in state:
            tensor.copy_(state[key])
            taken[next(part for part in PARTS if key.startswith(part))] += 1
    return _table(taken, own, names, list(labels), [len(x[QUERIES[0]]) for x in (state, own) if QUERIES[0] in x])


def _table(taken: Counter[str], own: dict[str, Tensor], names: list[str], before: list[str], queries: list[int]) -> str:
    """What was taken, resized and left, for people."""
    lines = []
    for part in PARTS:
        count = sum(key.startswith(part) and key not in (*CLASS_LAYER, *QUERIES) for key in own)
        if count:
            text = f"all {count} tensors taken" if taken[part] == count else f"not from it, {count} tensors"
            lines.append((part.removeprefix("head.").rstrip(".").replace("_", " "), text))
    if queries:
        lines.append(
            ("queries", f"{min(queries)} taken, {queries[1] - min(queries)} new, {queries[0] - min(queries)} left")
        )
    kept, new = [name for name in names if name in before], [name for name in names if name not in before]
    told = f"{len(kept)} taken by name, {len(new)} new, {len(before) - len(kept)} left"
    some = f" (new: {', '.join(new[:10])}{', …' if len(new) > 10 else ''})" if new else ""
    lines.append(("classes", told + some))
    return "\n".join(f"  {part:20} {text}" for part, text in lines)


def _channels_read(state: dict[str, Tensor]) -> list[int]:
    """Channels of the four maps that a head reads, finest first."""
    decoder = "head.pixel_decoder."
    names = [f"{decoder}lateral.0.weight", *(f"{decoder}input_projections.{level}.0.weight" for level in (2, 1, 0))]
    return [state[name].shape[1] for name in names]


def load_checkpoint(source: str, token: str | None = None) -> Checkpoint:
    """A trained model from a folder or a hub id, in float32.

    Raises ValueError for another kind of model, for weights that are missing, and for what is not supported; OSError,
    KeyError or RuntimeError when it cannot be found or read.
    """
    config = load_config(source, token)
    if config.model_type not in ("mask2former", Mask2FormerDinov3Config.model_type):
        raise ValueError(f"{WANTED}; got a model of type {config.model_type!r}")
    file = weights_file(source, token)
    if config.model_type == "mask2former" and file is not None and is_original(file):
        return checkpoint_of(config, read_weights(file))
    kinds = {
        "mask2former": Mask2FormerForUniversalSegmentation,
        Mask2FormerDinov3Config.model_type: Mask2FormerDinov3ForInstanceSegmentation,
    }
    is_ours = config.model_type == Mask2FormerDinov3Config.model_type
    model = load_pretrained(kinds[config.model_type], source, config, token, whole=is_ours)
    if is_ours:
        return Checkpoint(model.config, model.state_dict())
    return checkpoint_of(model.config, model.state_dict())


def is_original(file: Path) -> bool:
    """Whether a file of weights is one of the original DINOv3 + Mask2Former project."""
    return any(key.startswith(ORIGINAL) for key in shapes_of(file))
