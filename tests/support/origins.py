"""Weights as DINOv3's origins name them. The names and shapes of every published size were written down from the
origins' own code (Meta's dinov3 at 6876159, timm 1.0.31); the numbers are random and the networks small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
NAMES: dict[str, dict[str, tuple[list[int], int]]] = json.loads(
    (Path(__file__).parents[1] / "assets" / "dinov3_origins.json").read_text()
)
# A width becomes a sixth, a ConvNeXt's a twelfth; kernels and tokens stay.
SMALL_VIT = {384: 64, 1152: 192, 1536: 128}
SMALL_CONVNEXT = {size: size // 12 for size in (96, 192, 384, 768, 1536, 3072)}


def meta_state(name: str) -> State:
    """All tensors of a published size without memory, but for the few small ones whose numbers are looked at."""
    state: State = {}
    for key, shape in _spelt_out(name, depth=None):
        real = key.endswith(("periods", "qkv.bias", "bias_mask"))
        state[key] = torch.zeros(shape) if real else torch.empty(shape, device="meta")
    if "rope_embed.periods" in state:
        count = len(state["rope_embed.periods"])
        state["rope_embed.periods"] = 100 ** (torch.arange(count) / count)
    return state


def small_state(name: str, depth: int = 2, seed: int = 0) -> State:
    """The same names with a fraction of the channels and `depth` blocks (of a ConvNeXt in each stage), seeded."""
    generator = torch.Generator().manual_seed(seed)
    sizes = SMALL_CONVNEXT if "convnext" in name else SMALL_VIT
    state: State = {}
    for key, shape in _spelt_out(name, depth):
        values = torch.randn([sizes.get(side, side) for side in shape], generator=generator)
        is_scale = key.endswith(("gamma", "gamma_1", "gamma_2", "norm.weight", "norm1.weight", "norm2.weight"))
        state[key] = 1 + 0.2 * values if is_scale else 0.1 * values
    if "rope_embed.periods" in state:
        state["rope_embed.periods"] = 100 ** (torch.arange(16) / 16)  # one head of 64 channels
    for key in [key for key in state if key.endswith("bias_mask")]:
        state[key] = torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64)])
    if "norms.3.weight" in state:
        state |= {f"norms.3.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    return state


def as_timm(state: State) -> State:
    """Meta's weights under timm's names, by the rules of timm's own `checkpoint_filter_fn` (eva.py, convnext.py)."""
    renamed: State = {}
    for key, tensor in state.items():
        if key.endswith((".periods", ".bias_mask", "mask_token")) or key.startswith(("local_cls_norm", "norms.")):
            continue
        if key.endswith("qkv.bias"):
            query, _, value = tensor.chunk(3)
            renamed |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): value}
            continue
        if key.startswith("stages."):
            _, stage, block, rest = key.split(".", 3)
            key = f"stages.{stage}.blocks.{block}.{rest}".replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
        elif key.startswith("downsample_layers."):
            _, stage, part, rest = key.split(".", 3)
            key = f"stem.{part}.{rest}" if stage == "0" else f"stages.{stage}.downsample.{part}.{rest}"
        elif key.startswith("norm.") and "downsample_layers.0.0.weight" in state:
            key = f"head.{key}"
        for theirs, timms in TIMM_RULES:
            key = key.replace(theirs, timms)
        renamed[key] = tensor
    return renamed


TIMM_RULES = (
    *(("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"), ("storage_tokens", "reg_token")),
    *(("mlp.w1", "mlp.fc1_g"), ("mlp.w2", "mlp.fc1_x"), ("mlp.w3", "mlp.fc2")),
)


def vit_blocks(state: State, images: Tensor) -> list[Tensor]:
    """Patch tokens after each block, (B, h*w, D), from Meta's weights of one head, written from the paper (section 3)
    and Meta's names, without any class of this package or of transformers."""
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    batch, width, h, w = patches.shape
    start = torch.cat([state["cls_token"], state["storage_tokens"]], dim=1).expand(batch, -1, -1)
    tokens = torch.cat([start, patches.flatten(2).transpose(1, 2)], dim=1)
    rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (h, w))
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2)
    angles = (2 * torch.pi * places[:, :, None] / state["rope_embed.periods"]).flatten(1).tile(2)

    def turned(x: Tensor) -> Tensor:
        prefix, rest = x[:, :5], x[:, 5:]
        half = rest.shape[-1] // 2
        swapped = torch.cat([-rest[..., half:], rest[..., :half]], dim=-1)
        return torch.cat([prefix, rest * angles.cos() + swapped * angles.sin()], dim=1)

    def part(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    found = []
    for number in range(sum(key.endswith("attn.qkv.weight") for key in state)):
        block = f"blocks.{number}"
        bias = state[f"{block}.attn.qkv.bias"] * state[f"{block}.attn.qkv.bias_mask"]
        query, key, value = F.linear(norm(f"{block}.norm1", tokens), state[f"{block}.attn.qkv.weight"], bias).chunk(
            3, -1
        )
        attended = F.scaled_dot_product_attention(turned(query), turned(key), value)
        tokens = tokens + state[f"{block}.ls1.gamma"] * part(f"{block}.attn.proj")(attended)
        normed = norm(f"{block}.norm2", tokens)
        if f"{block}.mlp.w1.weight" in state:
            wide = F.silu(part(f"{block}.mlp.w1")(normed)) * part(f"{block}.mlp.w2")(normed)
            done = part(f"{block}.mlp.w3")(wide)
        else:
            done = part(f"{block}.mlp.fc2")(F.gelu(part(f"{block}.mlp.fc1")(normed)))
        tokens = tokens + state[f"{block}.ls2.gamma"] * done
        found.append(tokens[:, 5:])
    return found


def convnext_stages(state: State, images: Tensor) -> list[Tensor]:
    """Maps after each stage from Meta's weights, written from the paper (ConvNeXt, arXiv:2201.03545, section 2)."""

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x.permute(0, 2, 3, 1), (len(weight),), weight, bias, 1e-6).permute(0, 3, 1, 2)

    x, found = images, []
    for stage in range(4):
        first, second = f"downsample_layers.{stage}.0", f"downsample_layers.{stage}.1"
        convolution, is_stem = (first, True) if stage == 0 else (second, False)
        weight, bias = state[f"{convolution}.weight"], state[f"{convolution}.bias"]
        x = F.conv2d(x if is_stem else norm(first, x), weight, bias, stride=4 if is_stem else 2)
        x = norm(second, x) if is_stem else x
        for number in range(sum(key.startswith(f"stages.{stage}.") and key.endswith("gamma") for key in state)):
            block = f"stages.{stage}.{number}"
            weight = state[f"{block}.dwconv.weight"]
            y = norm(f"{block}.norm", F.conv2d(x, weight, state[f"{block}.dwconv.bias"], padding=3, groups=len(weight)))
            y = y.permute(0, 2, 3, 1)
            for layer, activation in (("pwconv1", F.gelu), ("pwconv2", _same)):
                y = activation(F.linear(y, state[f"{block}.{layer}.weight"], state[f"{block}.{layer}.bias"]))
            x = x + (y * state[f"{block}.gamma"]).permute(0, 3, 1, 2)
        found.append(x)
    return found


def _same(x: Tensor) -> Tensor:
    return x


def _spelt_out(name: str, depth: int | None) -> list[tuple[str, list[int]]]:
    entries: list[tuple[str, list[int]]] = []
    entry: Any
    for pattern, entry in NAMES[name].items():
        shape, count = entry
        numbers = range(min(count, depth or count)) if "#" in pattern else [0]
        entries += [(pattern.replace("#", str(number)), shape) for number in numbers]
    return entries
