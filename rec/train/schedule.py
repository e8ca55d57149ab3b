"""The learning rate over a whole run."""

import math
from collections.abc import Sequence

import torch


def rate(step: int, steps: int, *, warmup: float) -> float:
    """Factor on the learning rate at `step` of `steps`: up along a line over the share `warmup` of all steps, then
    down to zero along a cosine."""
    warm = max(round(warmup * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def set_rates(optimizer: torch.optim.Optimizer, bases: Sequence[float], factor: float) -> None:
    """Give each parameter group its own step size, `bases` in the order of the groups, times `factor`."""
    for group, base in zip(optimizer.param_groups, bases, strict=True):
        group["lr"] = factor * base
