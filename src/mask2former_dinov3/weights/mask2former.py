"""Load trained models, convert Hugging Face's Mask2Former in both directions, and adapt models to other classes.

One table renames all tensors of Hugging Face's Mask2Former; a name that no row matches is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, PreTrainedConfig, PreTrainedModel

from ..errors import CheckpointError, ConfigError, mismatch
from ..model.configuration import Mask2FormerDinov3Config
from ..model.modeling import Mask2FormerDinov3ForInstanceSegmentation
from .files import read_weights, shapes_of
from .formats import config_of_shapes
from .loading import find_weights_file, load_network_config, load_pretrained
from .name_patterns import match_name, rename

DECODER = "model.pixel_level_module.decoder."
TABLE = {  # Hugging Face's names, ours
    "model.pixel_level_module.encoder.**": "backbone.**",
    f"{DECODER}encoder.layers.**": "head.pixel_decoder.layers.**",
    f"{DECODER}adapter_1.**": "head.pixel_decoder.lateral.**",
    f"{DECODER}layer_1.**": "head.pixel_decoder.output.**",
    f"{DECODER}input_projections.**": "head.pixel_decoder.input_projections.**",
    f"{DECODER}level_embed": "head.pixel_decoder.level_embed",
    f"{DECODER}mask_projection.*": "head.pixel_decoder.mask_projection.*",
    **{  # layers of a perceptron; ours counts the activations between them
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
# The original DINOv3 + Mask2Former project has a ViT and an adapter in the place of Hugging Face's Swin.
ORIGINAL = "model.pixel_level_module.encoder.model."
ORIGINAL_TABLE = {
    f"{ORIGINAL}model.layer.**": "backbone.model.layer.**",
    f"{ORIGINAL}layer.**": "backbone.model.layer.**",
    f"{ORIGINAL}**": "backbone.**",
    "model.pixel_level_module.encoder.adapter.**": "neck.**",
}
FUSED = ("**.cross_attn.in_proj_*", tuple(f"**.cross_attn.{part}_proj.*" for part in "qkv"))
# fmt: off
CONFIG_FIELDS = (  # fields that both configurations share
    "feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "activation_function",
    "encoder_layers", "decoder_layers", "num_attention_heads", "dim_feedforward", "enforce_input_projection",
    "num_queries", "no_object_weight", "class_weight", "mask_weight", "dice_weight", "train_num_points",
    "oversample_ratio", "importance_sample_ratio", "use_auxiliary_loss", "init_std", "init_xavier_std",
)
# fmt: on
# Tensors whose shape depends on the classes, and on the number of queries.
CLASS_LAYER = tuple(f"head.transformer_decoder.class_predictor.{name}" for name in ("weight", "bias"))
QUERIES = tuple(f"head.transformer_decoder.{name}.weight" for name in ("queries_features", "queries_embedder"))
PARTS = ("backbone.", "neck.", "head.pixel_decoder.", "head.transformer_decoder.")
DINOV3_OF_ORIGINAL = {  # width of the ViT -> its backbone
    384: "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    1024: "facebook/dinov3-vitl16-pretrain-lvd1689m",
}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model under our names: its configuration and weights.

    published: it is Hugging Face's Mask2Former on a Swin; only its head is used with another backbone. source: where it
    was loaded from, for messages.
    """

    config: Mask2FormerDinov3Config
    state: dict[str, Tensor]
    published: bool = False
    source: str = "the trained model"


def convert_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's state dict. Raises CheckpointError that lists the names that no row matches."""
    rows = [*ORIGINAL_TABLE.items(), *TABLE.items()]
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        name = rename(key, rows)
        if name is not None:
            # nn.MultiheadAttention stores query, key and value in one tensor; ours are three layers.
            parts = [part for row in FUSED[1] if (part := rename(name, [(FUSED[0], row)])) is not None]
            converted.update(zip(parts, tensor.chunk(3), strict=True) if parts else [(name, tensor)])
        elif key != "criterion.empty_weight":
            unknown.append(key)
    if unknown:
        got = f"{len(unknown)} others: {', '.join(unknown[:10])}"
        raise CheckpointError(mismatch("names of a Hugging Face Mask2Former", got))
    return converted


def to_mask2former(model: Mask2FormerDinov3ForInstanceSegmentation) -> Mask2FormerForUniversalSegmentation:
    """Convert a model on a Swin to Hugging Face's own class, with the same logits.

    Raises CheckpointError for a model that Hugging Face's code cannot compute.
    """
    config = model.config
    ours = {name: getattr(config, name) for name in ("query_init", "mask_stride")}
    if config.backbone_config.model_type != "swin" or ours != {"query_init": "learned", "mask_stride": 4}:
        got = (
            f"one with a {config.backbone_config.model_type}, {config.query_init} queries and masks at stride "
            f"{config.mask_stride}"
        )
        expected = "a model with a Swin, learned queries and masks at stride 4, as Hugging Face's Mask2Former"
        raise CheckpointError(mismatch(expected, got))
    fields = {name: getattr(config, name) for name in (*CONFIG_FIELDS, "id2label", "label2id")}
    theirs = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=config.backbone_config, **fields))
    state: dict[str, Tensor] = dict(model.state_dict())
    for key in [key for key in state if match_name(FUSED[1][0], key)]:
        names = [str(rename(key, [(FUSED[1][0], row)])) for row in FUSED[1]]
        state[str(rename(key, [(FUSED[1][0], FUSED[0])]))] = torch.cat([state.pop(name) for name in names])
    rows = [(ours, theirs) for theirs, ours in TABLE.items()]
    theirs_state = {str(rename(key, rows)): tensor for key, tensor in state.items()}
    theirs.load_state_dict(theirs_state | {"criterion.empty_weight": theirs.criterion.empty_weight})
    return theirs


def _check_supported(hf_config: object) -> None:
    refused = {
        "pre_norm": (False, getattr(hf_config, "pre_norm", False)),
        "dropout": (0.0, float(getattr(hf_config, "dropout", 0.0))),
        "common_stride": (4, getattr(hf_config, "common_stride", 4)),
        "feature_strides": ([4, 8, 16, 32], list(getattr(hf_config, "feature_strides", (4, 8, 16, 32)))),
    }
    faults = [f"  {name}: {mismatch(str(want), got)}" for name, (want, got) in refused.items() if want != got]
    if faults:
        raise CheckpointError("config.json has values that are not supported:\n" + "\n".join(faults))


def convert_trained_model(hf_config: PreTrainedConfig, hf_state: dict[str, Tensor]) -> TrainedModel:
    """Convert a Hugging Face Mask2Former, with its Swin or with the original project's DINOv3.

    The config.json of the original project's models describes a Swin, but their encoder is a ViT with an adapter: the
    names of the tensors decide. Raises CheckpointError that names what is not supported.
    """
    _check_supported(hf_config)
    state = convert_keys(hf_state)
    fields = {name: getattr(hf_config, name) for name in CONFIG_FIELDS}
    fields |= {"id2label": hf_config.id2label, "label2id": hf_config.label2id}
    vit = {key.removeprefix("backbone."): x for key, x in state.items() if key.startswith("backbone.")}
    if "embeddings.cls_token" not in vit:
        fields |= {"backbone_config": hf_config.backbone_config, "neck": "none"}
        return TrainedModel(Mask2FormerDinov3Config(**fields), state, published=True)
    backbone_config = config_of_shapes(vit)
    fields |= {
        "backbone_config": backbone_config,
        "backbone_source": DINOV3_OF_ORIGINAL.get(backbone_config.hidden_size, "a DINOv3 ViT"),
        "backbone_norm": False,  # the original project taps blocks without the final norm
        "neck": "pyramid" if any(key.startswith("neck.resamplers.") for key in state) else "plain",
        "neck_channels": [len(state[f"neck.projections.{level}.weight"]) for level in range(4)],
        "num_queries": len(state[QUERIES[0]]),
    }
    return TrainedModel(Mask2FormerDinov3Config(**fields), state)


def from_mask2former(hf_model: PreTrainedModel, **config_kwargs: object) -> Mask2FormerDinov3ForInstanceSegmentation:
    """Convert a Hugging Face `Mask2FormerForUniversalSegmentation` with its Swin (`neck="none"`); same logits.

    config_kwargs: changes such as `backbone_config=…`, see `rebuild`. Raises CheckpointError for what is not supported.
    """
    return rebuild(convert_trained_model(hf_model.config, hf_model.state_dict()), **config_kwargs)[0]


def rebuild(trained: TrainedModel, **changes: object) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, str]:
    """Build the trained model with some fields of its configuration changed; also returns a table of its weights' use.

    With `backbone_config` backbone and neck are new. Classes of the same name keep their weights, and so do the first
    learned queries; all other new weights are random. Raises ConfigError for fields that this architecture does not
    support, CheckpointError when weights are missing or of another shape.
    """
    before = trained.config
    names = [name for name, kind in Mask2FormerDinov3Config.__annotations__.items() if "ClassVar" not in str(kind)]
    fields: dict[str, object] = {name: getattr(before, name) for name in [*names, "id2label", "label2id"]}
    if {"num_labels", "id2label", "category_ids"} & changes.keys():
        fields = {key: x for key, x in fields.items() if key not in ("id2label", "label2id", "category_ids")}
    state: Mapping[str, Tensor] = trained.state
    new_parts: tuple[str, ...] = ()
    if "backbone_config" in changes:
        new_parts = ("backbone.", "neck.")
        state = {key: x for key, x in state.items() if not key.startswith(new_parts)}
        own = ("backbone_taps", "backbone_norm", "backbone_source", "neck", "mask_stride")
        fields = {key: x for key, x in fields.items() if key not in own}
        fields["neck_channels"] = _input_channels(state)
    try:
        config = Mask2FormerDinov3Config(**{**fields, **changes})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model = Mask2FormerDinov3ForInstanceSegmentation(config)
    return model, _copy_weights(model, trained.source, before, state, new_parts)


@torch.no_grad()
def _copy_weights(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    source: str,
    before: Mask2FormerDinov3Config,
    state: Mapping[str, Tensor],
    new_parts: tuple[str, ...],
) -> str:
    """Copy weights into the model by the rules of `rebuild`. Returns the table, a line per part."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(new_parts)]
    surplus = sorted(state.keys() - own.keys())
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and key not in (*CLASS_LAYER, *QUERIES) and state[key].shape != tensor.shape
    ]
    faults = [
        f"{len(keys)} {kind}, e.g. {', '.join(keys[:3])}"
        for kind, keys in (("missing", missing), ("surplus", surplus), ("of another shape", wrong))
        if keys
    ]
    if faults:
        raise CheckpointError(f"{source}: {mismatch('the weights of this network', ', '.join(faults))}")
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
    """Table of the weights that were copied, that are new, and that are not used."""
    lines = []
    for part in PARTS:
        count = sum(key.startswith(part) and key not in (*CLASS_LAYER, *QUERIES) for key in own)
        if count:
            text = f"all {count} tensors copied" if taken[part] == count else f"{count} new tensors"
            lines.append((part.removeprefix("head.").rstrip(".").replace("_", " "), text))
    if queries:
        lines.append(
            ("queries", f"{min(queries)} copied, {queries[1] - min(queries)} new, {queries[0] - min(queries)} unused")
        )
    kept, new = [name for name in names if name in before], [name for name in names if name not in before]
    counts = f"{len(kept)} copied by name, {len(new)} new, {len(before) - len(kept)} unused"
    some = f" (new: {', '.join(new[:10])}{', …' if len(new) > 10 else ''})" if new else ""
    lines.append(("classes", counts + some))
    return "\n".join(f"  {part:20} {text}" for part, text in lines)


def _input_channels(state: Mapping[str, Tensor]) -> list[int]:
    """Channels of the four maps that a head takes, finest first."""
    decoder = "head.pixel_decoder."
    names = [f"{decoder}lateral.0.weight", *(f"{decoder}input_projections.{level}.0.weight" for level in (2, 1, 0))]
    return [state[name].shape[1] for name in names]


def load_trained_model(source: str, token: str | None = None) -> TrainedModel:
    """Load a trained model in float32: of this package, Hugging Face's Mask2Former, or the original project's.

    source: a folder or a hub id. Raises CheckpointError for another kind of model, for missing weights and for what is
    not supported, HubError for the hub's failures; both name `source`.
    """
    config = load_network_config(source, token)
    is_ours = config.model_type == Mask2FormerDinov3Config.model_type
    if not is_ours and config.model_type != "mask2former":
        expected = "a Mask2Former of Hugging Face or of this package"
        raise CheckpointError(f"{source}: {mismatch(expected, f'a model of type {config.model_type!r}')}")
    if is_ours:
        model = load_pretrained(Mask2FormerDinov3ForInstanceSegmentation, source, config, token, whole=True)
        return TrainedModel(model.config, model.state_dict(), source=source)
    file = find_weights_file(source, token)
    try:
        if file is not None and is_original(file):
            return replace(convert_trained_model(config, read_weights(file)), source=source)
        model = load_pretrained(Mask2FormerForUniversalSegmentation, source, config, token)
        return replace(convert_trained_model(model.config, model.state_dict()), source=source)
    except CheckpointError as error:
        raise _name_source(source, error) from error


def _name_source(source: str, error: CheckpointError) -> CheckpointError:
    """The error with its source in front, unless it begins with a path in it."""
    return error if str(error).startswith(source) else CheckpointError(f"{source}: {error}")


def is_original(file: Path) -> bool:
    """Whether a file of weights is one of the original DINOv3 + Mask2Former project."""
    return any(key.startswith(ORIGINAL) for key in shapes_of(file))
