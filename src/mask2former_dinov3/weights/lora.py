"""LoRA adapters in a model's state: listed, merged into the weights, taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

ADAPTER = "default"  # peft's name for the only one


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters by name; none in a model without, for which peft is not needed."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What exact resuming needs beside `merged_state`: own weights and adapters of every adapted layer, apart."""
    layers = adapted_layers(model)
    return {f"{name}.{key}": tensor for name, layer in layers.items() for key, tensor in layer.state_dict().items()}


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the same model without adapters: each is added to its layer's weight. `model` stays as it is."""
    state: dict[str, Tensor] = model.state_dict()
    for name, layer in adapted_layers(model).items():
        for key in layer.state_dict():
            tensor = state.pop(f"{name}.{key}")
            if key.startswith("base_layer."):
                state[f"{name}.{key.removeprefix('base_layer.')}"] = tensor
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(ADAPTER)
    return state


def unmerged_state(merged: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `merged_state` by `adapter_state`: the state of the model with adapters, bit for bit."""
    own = {key.replace(".base_layer.", ".") for key in adapters if ".base_layer." in key}
    return {key: tensor for key, tensor in merged.items() if key not in own} | dict(adapters)
