"""A training loop that Ray's workers can import, and that kills one of them when told to."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rec.errors import ArtifactError
from rec.models.item_inputs import ItemBatch
from rec.train import behaviour, contrast, ddp


def loop(config: dict[str, Any]) -> None:
    """Fit a line through noise, with dropout; `kill` names a file that is made when the last worker kills itself."""
    torch.manual_seed(0)
    model = ddp.distribute(nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.GELU(), nn.Linear(16, 1)))
    inputs = torch.randn(64, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in ddp.checkpointed_epochs(model, optimizer, epochs=config["epochs"], seed=3):
        steps = ddp.batches(len(inputs), 16, epoch.rng)
        for step, rows in enumerate(epoch.progress(steps, what="line", count=len(steps))):
            if config["kill"] and epoch.number == 2 and step == 2 and ddp.rank() == ddp.world_size() - 1:
                _kill_once(Path(config["kill"]))
            loss = nn.functional.mse_loss(model(inputs[rows]), inputs[rows].sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch.metrics["loss"] = loss.item()


class BehaviourKilledOnce:
    """The item tower's behaviour stage, whose last worker kills itself at its step `step` when `flag` is not there."""

    def __init__(self, flag: Path, step: int) -> None:
        self._flag, self._step = flag, step

    def __call__(self, config: dict[str, Any]) -> None:
        views, made = contrast.views, 0

        def counted(*arguments: Any, **options: Any) -> ItemBatch:
            nonlocal made
            made += 1
            if made == self._step and ddp.rank() == ddp.world_size() - 1:
                _kill_once(self._flag)
            return views(*arguments, **options)

        contrast.views = counted
        behaviour.loop(config)


def _kill_once(flag: Path) -> None:
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(config: dict[str, Any]) -> None:
    """A worker meets input that a user can mend."""
    raise ArtifactError(f"{config['what']} is missing: run its job")
