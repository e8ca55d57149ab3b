"""A training loop that Ray's workers can import, and that kills one of them when told to."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rec.config import Train
from rec.errors import ArtifactError
from rec.models.item_inputs import ItemBatch
from rec.train import contrast, ddp, item
from rec.train.checkpoint import Position


def loop(config: dict[str, Any]) -> None:
    """Fit a line through noise, with dropout.

    `kill` names a file that is made when the last worker kills itself, in the third epoch at step `at`, after the `run`
    has a checkpoint within it; `steps` one to which the first worker adds the epoch and step that it begins.
    """
    torch.manual_seed(0)
    model = ddp.distribute(nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.GELU(), nn.Linear(16, 1)))
    inputs = torch.randn(64, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train = Train.model_validate(config["train"])
    for epoch in ddp.checkpointed_epochs(
        model, optimizer, train, what="line", epochs=train.epochs, seed=3, remedy="try again"
    ):
        steps = ddp.batches(len(inputs), train.batch_size, epoch.rng)
        for step, rows in epoch.progress(steps[epoch.first :], count=len(steps)):
            if ddp.rank() == 0:
                with Path(config["steps"]).open("a") as begun:
                    begun.write(f"{epoch.number} {step}\n")
            if config["kill"] and (epoch.number, step) == (2, config["at"]) and ddp.rank() == ddp.world_size() - 1:
                while (reached := ddp.position(Path(config["run"]))) and (reached.epoch, reached.step) != (
                    2,
                    ddp.BLOCK_STEPS,
                ):
                    time.sleep(0.05)
                _kill_once(Path(config["kill"]))
            loss = nn.functional.mse_loss(model(inputs[rows]), inputs[rows].sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch.add(loss=loss)
        epoch.metrics["loss"] = epoch.mean("loss", len(steps))


def draws(config: dict[str, Any]) -> None:
    """50 steps an epoch, each of which adds to the file `drawn` its epoch, its number and what torch draws in it; the
    loss of step `bad` of the first epoch is no number."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train = Train.model_validate(config["train"])
    for epoch in ddp.checkpointed_epochs(
        model, optimizer, train, what="toy", epochs=train.epochs, seed=3, remedy="try again"
    ):
        for step, _ in epoch.progress(range(epoch.first, 50), count=50):
            given = torch.rand(1)
            with Path(config["drawn"]).open("a") as drawn:
                drawn.write(f"{epoch.number} {step} {float(given)}\n")
            loss = model(given).square().sum()
            if (epoch.number, step) == (0, config["bad"]):
                loss = loss * torch.nan
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch.add(loss=loss)
        epoch.metrics["loss"] = epoch.mean("loss", 50)


class KilledOnce:
    """A loop of the item tower, whose last worker kills itself at its step `step` when `flag` is not there."""

    def __init__(self, loop: ddp.Loop, flag: Path, step: int) -> None:
        self._loop, self._flag, self._step = loop, flag, step

    def __call__(self, config: dict[str, Any]) -> None:
        views, made = contrast.views, 0

        def counted(*arguments: Any, **options: Any) -> ItemBatch:
            nonlocal made
            made += 1
            if made == self._step and ddp.rank() == ddp.world_size() - 1:
                _kill_once(self._flag)
            return views(*arguments, **options)

        contrast.views = counted
        self._loop(config)


class Poisoned:
    """The item tower's SimCSE, which meets a number that is none on its last worker at its step `step`: `what` is
    the loss, or the gradient on one weight. Every start adds a line to the file `starts`."""

    def __init__(self, what: str, step: int, starts: Path) -> None:
        self._what, self._step, self._starts = what, step, starts

    def __call__(self, config: dict[str, Any]) -> None:
        step, made = contrast.step, 0
        if ddp.rank() == 0:
            with self._starts.open("a") as starts:
                starts.write("started\n")

        def poisoned(model: nn.Module, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal made
            made += 1
            loss, hits = step(model, *given)
            if made != self._step or ddp.rank() != ddp.world_size() - 1:
                return loss, hits
            if self._what == "loss":
                return loss * torch.nan, hits
            ddp.plain(model).anchor.grad[3] = torch.nan
            return loss, hits

        contrast.step = poisoned
        item.loop(config)


def interrupted_at(epoch: int, step: int, patch: pytest.MonkeyPatch) -> None:
    """A training in this process gets Ctrl-C as soon as its checkpoint after so many epochs and steps is there."""
    report = ddp._report

    def reported(module: nn.Module, optimizer: torch.optim.Optimizer, metrics: Any, reached: Position) -> None:
        report(module, optimizer, metrics, reached)
        if (reached.epoch, reached.step) == (epoch, step):
            raise KeyboardInterrupt

    patch.setattr(ddp, "_report", reported)


def _kill_once(flag: Path) -> None:
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(config: dict[str, Any]) -> None:
    """A worker meets input that a user can mend."""
    with Path(config["starts"]).open("a") as starts:
        starts.write("started\n")
    raise ArtifactError("text_states is missing: run its job")


def too_large(config: dict[str, Any]) -> None:
    """A worker asks for more memory than there is."""
    torch.empty(2**60, dtype=torch.uint8)


def killed(config: dict[str, Any]) -> None:
    """A worker is killed soon after every start."""
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
