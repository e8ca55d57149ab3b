"""Trainings, encode and embed in the test's own process.

For tests of what a training learns or what is made of it, not of how it is run: Ray's processes take longer to start
than most of this work takes. Tests of the stages hold both ways to the same bytes.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray.data
import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.train_fn_utils import set_train_fn_utils

from rec.config import Train
from rec.train import ddp


@contextmanager
def _threads(count: int | None = None) -> Iterator[None]:
    """Torch works with `count` threads, None for as many as before, and as before afterwards: sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def in_process(*loops: ddp.Loop) -> Iterator[None]:
    """Within it the trainings of these loops run here by Ray Train's local mode, and go on as runs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp, "fit", partial(_fit, loops, ddp.fit))
        yield


def _fit(
    here: Sequence[ddp.Loop],
    elsewhere: Callable[..., Path],
    loop: ddp.Loop,
    train: Train,
    name: str,
    loop_config: dict[str, Any],
    storage: Path,
    **told: Any,
) -> Path:
    if loop not in here:
        return elsewhere(loop, train, name, loop_config, storage, **told)
    run = storage / name

    def report(metrics: dict[str, float], checkpoint: Checkpoint | None = None) -> None:
        if (
            checkpoint is not None
        ):  # a folder of its own, for the optimizer may still have the earlier one's file mapped
            shutil.copytree(checkpoint.path, run / f"checkpoint_{len(_checkpoints(run)):06}")

    def last() -> Checkpoint | None:
        return Checkpoint.from_directory(_checkpoints(run)[-1]) if _checkpoints(run) else None

    with (
        pytest.MonkeyPatch.context() as patch,  # local mode keeps no checkpoints
        torch.random.fork_rng(),
        _threads(train.cpus_per_worker),
    ):
        patch.setattr(ray.train, "report", report)
        patch.setattr(ray.train, "get_checkpoint", last)
        TorchTrainer(
            loop,
            train_loop_config=loop_config,
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name=name, storage_path=str(storage.resolve())),
        ).fit()
    set_train_fn_utils(None)  # this process is no worker any more
    return _checkpoints(run)[-1]


def _checkpoints(run: Path) -> list[Path]:
    """Folders of the run's checkpoints, oldest first."""
    return sorted(run.glob("checkpoint_*"))


@contextmanager
def data_in_process() -> Iterator[None]:
    """Within it the actors of encode and embed are objects of this process."""
    with pytest.MonkeyPatch.context() as patch, _threads():  # actors set as many as they need
        patch.setattr(ray.data, "from_arrow", _Here)
        yield


class _Here:
    """As much of a data set as these stages use: each table, which is a batch, through one actor."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = tables
        self.context = SimpleNamespace()

    def map_batches(self, actor: Callable[..., Any], *, fn_constructor_args: Sequence[Any], **_: Any) -> "_Here":
        self._actor = actor(*fn_constructor_args)
        return self

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return map(self._actor, self._tables)
