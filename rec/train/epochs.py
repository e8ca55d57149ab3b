"""Training by plain steps under the cosine schedule until nothing gets better; the best epoch is kept."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rec.config import Train
from rec.train import ddp, schedule
from rec.train.contest import Contest
from rec.train.ddp import Epoch

WARMUP = 0.05
"""Share of all steps over which the learning rate rises."""


def contested(
    module: nn.Module,
    rows: int,
    loss_of: Callable[[nn.Module, NDArray[np.int64]], Tensor],
    measure: Callable[[], tuple[dict[str, float], float] | None],
    *,
    train: Train,
    patience: int,
    seed: int,
    what: str,
    remedy: str,
) -> None:
    """All epochs that are still to do, on the Ray Train worker that calls it, or those until `patience` is at an end.

    `loss_of` takes the module, data-parallel or not, and a batch of the `rows` row numbers; `measure` gives an epoch's
    metrics and how good it is, None where there is nothing to measure by: the last epoch is the best then.

    Raises TrainingError with the `remedy` where losses or a weight are no number before a checkpoint.
    """
    contest = Contest(module)
    wrapped = ddp.distribute(contest)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )
    for epoch in ddp.checkpointed_epochs(
        wrapped, optimizer, train, what=what, epochs=train.epochs, seed=seed, remedy=remedy
    ):
        if contest.stale(epoch.number, patience):
            break
        module.train()
        _steps(epoch, optimizer, rows, lambda batch: loss_of(wrapped, batch), train)
        module.eval()
        found, worth = measure() or ({}, float(epoch.number))
        epoch.metrics |= found
        contest.judge(ddp.from_first(worth), epoch.number + 1)


def _steps(
    epoch: Epoch,
    optimizer: torch.optim.Optimizer,
    rows: int,
    loss_of: Callable[[NDArray[np.int64]], Tensor],
    train: Train,
) -> None:
    """Take all steps of an epoch and put the mean of their losses into `epoch.metrics["loss"]`."""
    steps = ddp.batches(rows, train.batch_size, epoch.rng)
    for step, batch in epoch.progress(steps[epoch.first :], count=len(steps)):
        rate = schedule.rate(epoch.number * len(steps) + step, train.epochs * len(steps), warmup=WARMUP)
        schedule.set_rates(optimizer, [train.learning_rate], rate)
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epoch.add(loss=loss)
    epoch.metrics["loss"] = epoch.mean("loss", len(steps))
