"""One epoch of plain steps under the cosine schedule, and the mean of their losses, which must be a number."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rec.config import Train
from rec.errors import TrainingError
from rec.train import schedule
from rec.train.ddp import Epoch

WARMUP = 0.05
"""Share of all steps over which the learning rate rises."""

T = TypeVar("T")


def run(
    epoch: Epoch,
    optimizer: torch.optim.Optimizer,
    steps: Sequence[T],
    loss_of: Callable[[T], Tensor],
    *,
    what: str,
    train: Train,
    device: torch.device,
    remedy: str,
) -> None:
    """Take all `steps` of an epoch of `train.epochs` and put the mean of their losses into `epoch.metrics["loss"]`.

    Raises TrainingError with the `remedy` when that is no number.
    """
    total = torch.zeros((), device=device)
    for step, batch in enumerate(epoch.progress(steps, what=what, count=len(steps))):
        rate = schedule.rate(epoch.number * len(steps) + step, train.epochs * len(steps), warmup=WARMUP)
        schedule.set_rates(optimizer, [train.learning_rate], rate)
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    epoch.metrics["loss"] = float(total) / len(steps)
    if not math.isfinite(epoch.metrics["loss"]):
        raise TrainingError(
            f"the {what}'s loss in epoch {epoch.number + 1} is no number: {remedy}; the checkpoint of the epoch before "
            "stays"
        )
