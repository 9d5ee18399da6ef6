"""Handle LoRA adapters in a model's state dict: list them, merge them into the weights, restore them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

ADAPTER = "default"  # peft's default name


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Layers with adapters, by name. Does not need peft."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Original weights and adapters of every adapted layer: with `merged_state`, what exact resuming needs."""
    layers = adapted_layers(model)
    return {f"{name}.{key}": tensor for name, layer in layers.items() for key, tensor in layer.state_dict().items()}


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict with each adapter added to its layer's weight; `model` itself is not changed."""
    state: dict[str, Tensor] = model.state_dict()
    for name, layer in adapted_layers(model).items():
        for key in layer.state_dict():
            tensor = state.pop(f"{name}.{key}")
            if key.startswith("base_layer."):
                state[f"{name}.{key.removeprefix('base_layer.')}"] = tensor
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(ADAPTER)
    return state


def unmerged_state(merged: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `merged_state` by `adapter_state`: state dict of the model with adapters, bit for bit."""
    own = {key.replace(".base_layer.", ".") for key in adapters if ".base_layer." in key}
    return {key: tensor for key, tensor in merged.items() if key not in own} | dict(adapters)
