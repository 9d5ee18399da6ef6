"""Not a test: `train --config FILE` with fixed random points in the losses, started by test_processes.py.

Runs that divide the same images over processes and batches in different ways can then be compared.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.training import train
from mask2former_dinov3.training.build_model import build_model


def fixed_rand(*size: int, device: Any = None) -> torch.Tensor:
    """The same points for every mask, in every process and step."""
    generator = torch.Generator().manual_seed(size[1])
    points = torch.empty(1, *size[1:]).uniform_(generator=generator)
    return points.expand(size[0], -1, -1).to(device).clone()


def main() -> None:
    def with_fixed_points(*args: Any) -> Any:
        model = build_model(*args)
        model.criterion.rand = fixed_rand
        return model

    vars(train)["build_model"] = with_fixed_points
    config, _ = load_config(sys.argv[1], {})
    train.train(config)


if __name__ == "__main__":
    main()
