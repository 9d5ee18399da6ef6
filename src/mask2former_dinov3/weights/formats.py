"""DINOv3's backbones in the formats of their origins: one table of names per format, used in both directions.

Meta's `.pth` files (facebookresearch/dinov3, dinov3/models), timm's `.safetensors` (timm/models/eva.py and convnext.py)
and transformers' folders hold the same numbers under different names. Names and shapes in the file tell its format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import CheckpointError, mismatch
from .name_patterns import match_name, rename

State = dict[str, Tensor]
WHOLE: dict[str, type[PreTrainedModel]] = {
    "dinov3_vit": DINOv3ViTModel,
    "dinov3_convnext": DINOv3ConvNextModel,
}  # with the final norm
SEVEN_B = 4096  # width of the largest ViT, which differs in heads, biases and norms
ATTENTION = tuple(f"model.layer.#.attention.{part}_proj" for part in "qkv")
VIT_TABLE: dict[str, str] = {  # names that Meta and timm share
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.*": "embeddings.patch_embeddings.*",
    "blocks.#.norm1.*": "model.layer.#.norm1.*",
    "blocks.#.norm2.*": "model.layer.#.norm2.*",
    "blocks.#.attn.proj.*": "model.layer.#.attention.o_proj.*",
    "norm.*": "norm.*",
}
PLAIN_MLP = {
    "blocks.#.mlp.fc1.*": "model.layer.#.mlp.up_proj.*",
    "blocks.#.mlp.fc2.*": "model.layer.#.mlp.down_proj.*",
}


@dataclass(frozen=True)
class WeightFormat:
    """Tensor names of one family of networks at one origin; patterns as in `name_patterns`.

    marks: names that only this format has. plain_mlp, gated_mlp: names of a ViT's two kinds of MLP. fused: its layer
    that holds query, key and value in one. dropped: names that no feature map needs. optional: names of transformers
    that the origin lacks.
    """

    name: str
    model_type: str
    marks: tuple[str, ...]
    table: Mapping[str, str]
    plain_mlp: Mapping[str, str] = field(default_factory=dict)
    gated_mlp: Mapping[str, str] = field(default_factory=dict)
    fused: str | None = None
    dropped: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


META_VIT = WeightFormat(
    "Meta's DINOv3 ViT",
    "dinov3_vit",
    ("storage_tokens", "blocks.0.attn.qkv.weight"),
    {
        **VIT_TABLE,
        "storage_tokens": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
        "blocks.#.ls1.gamma": "model.layer.#.layer_scale1.lambda1",
        "blocks.#.ls2.gamma": "model.layer.#.layer_scale2.lambda1",
    },
    PLAIN_MLP,
    {
        "blocks.#.mlp.w1.*": "model.layer.#.mlp.gate_proj.*",
        "blocks.#.mlp.w2.*": "model.layer.#.mlp.up_proj.*",
        "blocks.#.mlp.w3.*": "model.layer.#.mlp.down_proj.*",
    },
    fused="blocks.#.attn.qkv.*",
    # The periods and the key's bias mask are checked below; only pretraining uses the norm of local crops.
    dropped=("rope_embed.periods", "blocks.#.attn.qkv.bias_mask", "local_cls_norm.*"),
)
TIMM_VIT = WeightFormat(
    "timm's DINOv3 ViT",
    "dinov3_vit",
    ("reg_token", "blocks.0.gamma_1"),
    {
        **VIT_TABLE,
        "reg_token": "embeddings.register_tokens",
        "blocks.#.gamma_1": "model.layer.#.layer_scale1.lambda1",
        "blocks.#.gamma_2": "model.layer.#.layer_scale2.lambda1",
        "blocks.#.attn.q_bias": "model.layer.#.attention.q_proj.bias",
        "blocks.#.attn.v_bias": "model.layer.#.attention.v_proj.bias",
    },
    PLAIN_MLP,
    {
        "blocks.#.mlp.fc1_g.*": "model.layer.#.mlp.gate_proj.*",
        "blocks.#.mlp.fc1_x.*": "model.layer.#.mlp.up_proj.*",
        "blocks.#.mlp.fc2.*": "model.layer.#.mlp.down_proj.*",
    },
    fused="blocks.#.attn.qkv.*",
    optional=("embeddings.mask_token",),  # used in pretraining only
)
META_CONVNEXT = WeightFormat(
    "Meta's DINOv3 ConvNeXt",
    "dinov3_convnext",
    ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    {
        "downsample_layers.#.#.*": "model.stages.#.downsample_layers.#.*",
        "stages.#.#.dwconv.*": "model.stages.#.layers.#.depthwise_conv.*",
        "stages.#.#.norm.*": "model.stages.#.layers.#.layer_norm.*",
        "stages.#.#.pwconv1.*": "model.stages.#.layers.#.pointwise_conv1.*",
        "stages.#.#.pwconv2.*": "model.stages.#.layers.#.pointwise_conv2.*",
        "stages.#.#.gamma": "model.stages.#.layers.#.gamma",
        "norm.*": "layer_norm.*",
    },
    dropped=("norms.3.*",),  # equal to `norm`
)
TIMM_CONVNEXT = WeightFormat(
    "timm's DINOv3 ConvNeXt",
    "dinov3_convnext",
    ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    {
        "stem.#.*": "model.stages.0.downsample_layers.#.*",
        "stages.#.downsample.#.*": "model.stages.#.downsample_layers.#.*",
        "stages.#.blocks.#.conv_dw.*": "model.stages.#.layers.#.depthwise_conv.*",
        "stages.#.blocks.#.norm.*": "model.stages.#.layers.#.layer_norm.*",
        "stages.#.blocks.#.mlp.fc1.*": "model.stages.#.layers.#.pointwise_conv1.*",
        "stages.#.blocks.#.mlp.fc2.*": "model.stages.#.layers.#.pointwise_conv2.*",
        "stages.#.blocks.#.gamma": "model.stages.#.layers.#.gamma",
        "head.norm.*": "layer_norm.*",
    },
)
ORIGIN_FORMATS = (META_VIT, TIMM_VIT, META_CONVNEXT, TIMM_CONVNEXT)
# Other weights that are given by mistake: (ending of a name in them, description).
OTHERS = (
    ("pos_embed", "a ViT with position embeddings of a fixed size, such as DINOv2's or ImageNet's"),
    ("sem_seg_head.predictor.query_feat.weight", "a Mask2Former of the original repository (detectron2)"),
    ("model.pixel_level_module.decoder.level_embed", "a Hugging Face Mask2Former, which `head` takes"),
    ("head.transformer_decoder.level_embed.weight", "a model of this package, which `head` takes"),
    ("model.layer.0.norm1.weight", "transformers' weights of a DINOv3 ViT: give the folder with its config.json"),
    ("layer.0.norm1.weight", "transformers' weights of a DINOv3 ViT: give the folder with its config.json"),
    ("layers.0.blocks.0.norm1.weight", "a Swin; transformers' format of it is read, by its folder or hub id"),
    ("layer1.0.conv1.weight", "a ResNet"),
    ("fc_norm.weight", "a ViT with a classifier"),
)


def recognise_format(state: Mapping[str, Tensor]) -> WeightFormat:
    """The format of a state dict. Raises CheckpointError that says what its names look like instead."""
    for found in ORIGIN_FORMATS:
        if all(mark in state for mark in found.marks) and "pos_embed" not in state:
            return found
    looks = next((text for name, text in OTHERS if any(key.endswith(name) for key in state)), None)
    some = ", ".join(sorted(state)[:3]) or "none"
    names = [one.name for one in ORIGIN_FORMATS]
    got = f"{looks or 'other weights'} ({len(state)} tensors: {some}, …)"
    raise CheckpointError(mismatch(f"the weights of {', '.join(names[:-1])} or {names[-1]}", got))


def from_origin(state: State) -> tuple[PreTrainedConfig, State]:
    """Convert a state dict of any of the formats to transformers' config and state dict.

    Raises CheckpointError for an unknown format, or one that lists surplus and missing names and wrong shapes.
    """
    source = recognise_format(state)
    pairs = {**source.table, **source.plain_mlp, **source.gated_mlp}.items()
    converted: State = {}
    surplus = []
    for key, tensor in state.items():
        if any(match_name(pattern, key) for pattern in source.dropped):
            continue
        parts = _split_name(source, key)
        if parts:
            converted.update(zip(parts, tensor.chunk(3), strict=True))
        elif (name := rename(key, pairs)) is not None:
            converted[name] = tensor
        else:
            surplus.append(key)
    config = config_of_shapes(converted)
    if source is META_VIT:
        _check_rope(state, config)
        _drop_key_bias(state, converted)
    if "embeddings.mask_token" in converted:
        converted["embeddings.mask_token"] = converted["embeddings.mask_token"].view(1, 1, -1)
    elif "embeddings.mask_token" in source.optional:
        converted["embeddings.mask_token"] = torch.zeros_like(converted["embeddings.cls_token"])
    check_complete(source.name, config, converted, surplus)
    return config, converted


def to_origin(source: WeightFormat, config: PreTrainedConfig, state: State) -> State:
    """Convert transformers' state dict of a whole model (final norm included) to the names of an origin."""
    mlp = source.gated_mlp if getattr(config, "use_gated_mlp", False) else source.plain_mlp
    pairs = [(ours, theirs) for theirs, ours in {**source.table, **mlp}.items()]
    names = {key: rename(key, pairs) for key in state}
    written = {name: state[key] for key, name in names.items() if name is not None}
    rest = [key for key, name in names.items() if name is None and key not in source.optional]
    assert all(any(match_name(f"{part}.*", key) for part in ATTENTION) for key in rest), rest
    if source.model_type == "dinov3_vit":
        written |= _fuse_attention(source, config, state)
    if source is META_VIT:
        written["mask_token"] = written["mask_token"].view(1, -1)
        written["rope_embed.periods"] = rope_periods(config)
        if _is_7b(config):  # Meta's code requires it, though only pretraining uses it
            written |= {f"local_cls_norm.{name}": written[f"norm.{name}"].clone() for name in ("weight", "bias")}
    if source is META_CONVNEXT:
        written |= {f"norms.3.{name}": written[f"norm.{name}"] for name in ("weight", "bias")}
    return {key: tensor.contiguous() for key, tensor in written.items()}


def config_of_shapes(state: State) -> PreTrainedConfig:
    """Derive transformers' config of a DINOv3 network from the shapes of its state dict (transformers' names).

    The number of heads follows from the width, since no shape depends on it: heads have 64 channels, in the 7B model
    128 (arXiv:2508.10104, table of the model family). Raises CheckpointError when a tensor that is needed is missing.
    """
    if "embeddings.cls_token" in state:
        return _vit_of_shapes(state)
    stages = _count(state, "model.stages.")
    firsts = [f"model.stages.{stage}.layers.0.depthwise_conv.weight" for stage in range(stages)]
    if stages != 4 or any(first not in state for first in firsts):
        raise CheckpointError(mismatch("a ConvNeXt of 4 stages", f"blocks of {stages}", "the file is cut"))
    config: PreTrainedConfig = DINOv3ConvNextConfig(
        hidden_sizes=[len(state[first]) for first in firsts],
        depths=[_count(state, f"model.stages.{stage}.layers.") for stage in range(stages)],
    )
    return config


def _vit_of_shapes(state: State) -> PreTrainedConfig:
    block = "model.layer.0."
    needed = ("embeddings.patch_embeddings.weight", "embeddings.register_tokens", f"{block}mlp.up_proj.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise CheckpointError(mismatch("a DINOv3 ViT", f"one without {', '.join(missing)} (names of transformers)"))
    patches = state["embeddings.patch_embeddings.weight"]
    width, gated = patches.shape[0], f"{block}mlp.gate_proj.weight" in state
    config: PreTrainedConfig = DINOv3ViTConfig(
        hidden_size=width,
        num_hidden_layers=_count(state, "model.layer."),
        num_attention_heads=max(1, width // (128 if width >= SEVEN_B else 64)),
        intermediate_size=len(state[f"{block}mlp.up_proj.weight"]),
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        num_register_tokens=state["embeddings.register_tokens"].shape[1],
        num_channels=patches.shape[1],
        patch_size=patches.shape[2],
        query_bias=f"{block}attention.q_proj.bias" in state,
        value_bias=f"{block}attention.v_proj.bias" in state,
    )
    return config


def size_name(config: PreTrainedConfig) -> str:
    """The paper's name of a network of these shapes, or a description of the shapes."""
    if config.model_type == "dinov3_vit":
        shape = (config.hidden_size, config.num_hidden_layers, config.use_gated_mlp)
        names = {
            (384, 12, False): "ViT-S/16",
            (384, 12, True): "ViT-S+/16",
            (768, 12, False): "ViT-B/16",
            (1024, 24, False): "ViT-L/16",
            (1280, 32, True): "ViT-H+/16",
            (4096, 40, True): "ViT-7B/16",
        }
        return names.get(shape, f"ViT of {shape[1]} blocks, {shape[0]} wide")
    depths, width = list(config.depths), config.hidden_sizes[0]
    letters = {(9, 96): "Tiny", (27, 96): "Small", (27, 128): "Base", (27, 192): "Large"}
    return f"ConvNeXt {letters.get((depths[2], width), f'of {depths} blocks, {width} wide')}"


def rope_periods(config: PreTrainedConfig) -> Tensor:
    """Periods of DINOv3's rotary positions, (head_dim / 4,) (dinov3/layers/rope_position_encoding.py)."""
    quarter = config.hidden_size // config.num_attention_heads // 4
    periods: Tensor = config.rope_theta ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    return periods


def check_complete(what: str, config: PreTrainedConfig, state: State, surplus: Iterable[str] = ()) -> None:
    """Raise CheckpointError that lists surplus names, missing names, and shapes that differ from those of `config`.

    what: description of the network. state: under transformers' names. surplus: names that were not converted.
    """
    expected = _expected_shapes(config)
    missing = sorted(expected.keys() - state.keys())
    surplus = sorted([*surplus, *(state.keys() - expected.keys())])
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key])}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key]
    ]
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("surplus", surplus), ("of another shape", wrong))
        if names
    ]
    if faults:
        expected_text, advice = f"all weights of {what}, {size_name(config)}", "the file is cut, or of another network"
        raise CheckpointError(mismatch(expected_text, ", ".join(faults), advice))


def _expected_shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    """Shapes of transformers' class, made on the meta device, which takes no memory."""
    with torch.device("meta"):
        model = WHOLE[config.model_type](config)
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def _check_rope(state: State, config: PreTrainedConfig) -> None:
    """Set the number of heads from the rotary periods. Raises CheckpointError if they are not those of DINOv3."""
    periods = state.get("rope_embed.periods")
    if periods is None:
        return
    config.num_attention_heads = config.hidden_size // (4 * len(periods))
    expected = rope_periods(config)
    # Meta's files hold them rounded to bfloat16.
    if periods.shape != expected.shape or not torch.allclose(periods.float(), expected, rtol=1e-2):
        wanted = f"DINOv3's rotary periods (base {config.rope_theta:g}) {expected.tolist()[:3]}, …"
        raise CheckpointError(mismatch(wanted, f"{periods.tolist()[:3]}, …"))


def _drop_key_bias(state: State, converted: State) -> None:
    """Drop the bias of the keys, which Meta masks with zeros. Raises CheckpointError for one that is not masked."""
    for key in [key for key in converted if key.endswith("k_proj.bias")]:
        bias = converted.pop(key)
        number = re.findall(r"\d+", key)[0]
        mask = state.get(f"blocks.{number}.attn.qkv.bias_mask")
        if bool((bias if mask is None else bias * mask.chunk(3)[1]).count_nonzero()):
            raise CheckpointError(f"blocks.{number}.attn.qkv.bias: {mismatch('no bias of the keys', 'one')}")


def _split_name(source: WeightFormat, key: str) -> list[str]:
    """transformers' three names for a fused layer of query, key and value; empty for other names."""
    if source.fused is None or match_name(source.fused, key) is None:
        return []
    return [str(rename(key, [(source.fused, f"{part}.*")])) for part in ATTENTION]


def _fuse_attention(source: WeightFormat, config: PreTrainedConfig, state: State) -> State:
    """Fuse query, key and value of every block; the key's bias is zero and masked (Meta), or absent (timm)."""
    written: State = {}
    for number in range(config.num_hidden_layers):
        theirs = f"blocks.{number}.attn.qkv"
        parts = [part.replace("#", str(number)) for part in ATTENTION]
        written[f"{theirs}.weight"] = torch.cat([state[f"{part}.weight"] for part in parts])
        if source is META_VIT and not _is_7b(config):
            none = torch.zeros(config.hidden_size)
            query, value = (state.get(f"{part}.bias", none) for part in (parts[0], parts[2]))
            written[f"{theirs}.bias"] = torch.cat([query, none, value])
            written[f"{theirs}.bias_mask"] = torch.cat([none + 1, none, none + 1])
    return written


def _is_7b(config: PreTrainedConfig) -> bool:
    return bool(config.hidden_size >= SEVEN_B)


def _count(state: State, prefix: str) -> int:
    """One more than the highest number that follows `prefix`."""
    numbers = [int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)]
    return max(numbers, default=-1) + 1
