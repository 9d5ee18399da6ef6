"""Averaged weights: steadier than those of the last step, most of all while the rate is high (Polyak and Juditsky,
"Acceleration of stochastic approximation by averaging", 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..model import Mask2FormerDinov3ForInstanceSegmentation


class AveragedWeights:
    """A second model whose trained weights follow the first: average += (1 - decay) (weights - average), every step.

    The decay starts low, so that the random first weights are forgotten: at step n it is (1 + n) / (10 + n) at most.
    Unlike torch.optim.swa_utils.AveragedModel it shares the frozen weights with the first model and stores no copy.
    Make it before accelerate wraps the forward pass of the first.
    """

    def __init__(self, model: Mask2FormerDinov3ForInstanceSegmentation, decay: float) -> None:
        # What the copy finds in this table it does not copy.
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, frozen).eval()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.pairs = {name: (self.model.get_parameter(name), model.get_parameter(name)) for name in names}
        self.decay = decay
        for average, _ in self.pairs.values():
            average.requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the optimiser's step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in self.pairs.values():
            average.lerp_(weight, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, on the device where they are."""
        return {name: average for name, (average, _) in self.pairs.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo `state_dict`. The names must be the same."""
        for name, (average, _) in self.pairs.items():
            average.copy_(state[name])
