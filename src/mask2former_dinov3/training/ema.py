"""Exponential moving average (EMA) of the weights, which varies less from step to step than the weights themselves
(Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..model import Mask2FormerDinov3ForInstanceSegmentation


class AveragedWeights:
    """A copy of the model whose trained weights follow the model's: average += (1 - decay) (weights - average).

    At step n the decay is at most (1 + n) / (10 + n), so that the random weights of the start are soon forgotten.
    Unlike torch.optim.swa_utils.AveragedModel the copy shares the frozen weights with the model.
    Construct it before accelerate wraps the model's forward pass.
    """

    def __init__(
        self,
        model: Mask2FormerDinov3ForInstanceSegmentation,
        decay: float,
        device: torch.device | str | None = None,
    ) -> None:
        """decay: per optimiser step, 0..1. device: of the copy, None for that of the model."""
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}  # deepcopy does not copy these
        self.model = copy.deepcopy(model, shared).eval()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.pairs = {name: (self.model.get_parameter(name), model.get_parameter(name)) for name in names}
        self.decay = decay
        for average, _ in self.pairs.values():
            average.requires_grad_(False)
        if device is not None:
            self.model.to(device)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages after optimiser step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in self.pairs.values():
            average.lerp_(weight, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name of the parameter, not copied."""
        return {name: average for name, (average, _) in self.pairs.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the averages of `state_dict`; the names must be the same."""
        for name, (average, _) in self.pairs.items():
            average.copy_(state[name])
