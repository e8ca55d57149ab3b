"""Losses of an epoch of the item tower: their mean, and the end of a training that went wrong."""

import math
from pathlib import Path

import torch

from rec import dataset
from rec.models.item_inputs import IntArray
from rec.schema import TENSORS
from rec.train.ddp import BLOCK_STEPS, Epoch

NAMED = 5
"""Products of a bad batch that are named."""


class Watch:
    """Losses of an epoch; one that is no number ends the training with the name of its batch.

    It looks at them after each block of steps, before the epoch's checkpoint may be written: to look is to wait for the
    GPU. Nothing since the last checkpoint is kept then.
    """

    def __init__(self, epoch: Epoch, tensors: Path) -> None:
        """`tensors` is the dataset whose products the rows are."""
        self._epoch = epoch
        self._tensors = tensors
        self._steps = epoch.first
        self._waiting: list[tuple[IntArray, torch.Tensor]] = []

    def add(self, rows: IntArray, loss: torch.Tensor, hits: torch.Tensor) -> None:
        """Note a step on item rows int64[B]."""
        self._waiting.append((rows, torch.stack([loss, hits])))
        if len(self._waiting) == BLOCK_STEPS:
            self._look()

    def means(self) -> tuple[float, float]:
        """Mean loss and share of hits of all steps."""
        self._look()
        return self._epoch.mean("loss", self._steps), self._epoch.mean("hits", self._steps)

    def _look(self) -> None:
        if not self._waiting:
            return
        told = torch.stack([both for _, both in self._waiting]).double().cpu()  # float64[steps, 2]
        for (rows, _), loss in zip(self._waiting, told[:, 0].tolist(), strict=True):
            self._steps += 1
            if not math.isfinite(loss):
                raise self._epoch.failed(self._said(rows, loss))
        loss, hits = told.sum(0)
        self._epoch.add(loss=loss, hits=hits)
        self._waiting = []

    def _said(self, rows: IntArray, loss: float) -> str:
        ids = dataset.read(self._tensors, TENSORS, ["product_id"])["product_id"].take(rows[:NAMED]).to_pylist()
        return (
            f"the loss of epoch {self._epoch.number + 1}, step {self._steps} is {loss}, on the {len(rows)} products "
            f"{', '.join(ids)}, ..., whose texts may be at fault"
        )
