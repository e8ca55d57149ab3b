"""Data-parallel training on Ray Train: one run, its checkpoints, and how it goes on after a kill.

A training loop is a plain function `loop(config)` that every worker runs:

    def loop(config: dict[str, Any]) -> None:
        model = ddp.distribute(Model(...))
        optimizer = torch.optim.AdamW(model.parameters(), lr=...)
        for epoch in ddp.checkpointed_epochs(
            model, optimizer, train, what="item tower", epochs=train.epochs, seed=17, remedy="lower ..."
        ):
            steps = ddp.batches(num_rows, train.batch_size, epoch.rng)
            for step, rows in epoch.progress(steps[epoch.first :], count=len(steps)):
                ...
                epoch.add(loss=loss)
            epoch.metrics["loss"] = epoch.mean("loss", len(steps))

Torch's randomness is seeded by (seed, epoch, worker, block) before each block of steps, `epoch.rng` by (seed, epoch).
Weights, optimizer and position are saved (`rec.train.checkpoint`) at the end of an epoch and between two blocks. So a
run whose worker or whose job was killed ends with the same weights as an undisturbed one.
"""

import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray.train
import torch
from numpy.typing import NDArray
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, get_device
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rec import artifact
from rec.config import Train
from rec.errors import ConfigError, TrainingError
from rec.train import checkpoint, failures, trainers
from rec.train.checkpoint import Position

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the run's checkpoints
PROGRESS_S = 10.0
BLOCK_STEPS = 20
"""Steps after which a run can stop and go on."""

T = TypeVar("T")
Loop = Callable[[dict[str, Any]], None]

logger = logging.getLogger(__name__)


def fit(
    loop: Loop,
    train: Train,
    name: str,
    loop_config: dict[str, Any],
    storage: Path,
    *,
    options: str = "train",
    room: str | None = None,
) -> Path:
    """Run `loop` on `train.num_workers` workers; returns the folder of the last checkpoint.

    `name` is that of `artifact.run_name`; when `storage` holds a run of that name it goes on after its last checkpoint.
    `loop_config` is plain data with absolute paths. Ray must have been started (`rec.runtime.start`).
    `options` is the name of the branch `train` in messages, `room` of what to lower where memory is out.

    Raises ConfigError when a Ray of this process has too few CPUs or GPUs, TrainingError when workers died or nodes
    were drained more than `train.max_failures` times or workers could not be had, and at once what a worker raises that
    a user can mend (RecError); ray.train.TrainingFailedError for all else.
    """
    room = room or f"{options}.batch_size"
    failures.check_room(train, options)
    run = storage / name
    resources: dict[str, float] = {"CPU": train.cpus_per_worker, "GPU": int(train.use_gpu)}
    made = partial(
        trainers.kind(),
        partial(_work, loop, train.cpus_per_worker, room),
        train=train,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(
            num_workers=train.num_workers, use_gpu=train.use_gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage.resolve()),
            # of drained nodes and of dead workers Ray Train keeps count apart
            failure_config=FailureConfig(  # type: ignore[call-arg]  # typed as Ray Train V1
                max_failures=train.max_failures,
                max_preemption_failures=train.max_failures,
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[trainers.Curves(run.resolve())],  # type: ignore[list-item]  # typed as Ray Train V1
        ),
    )
    try:
        result = _fitted(made, run, train.max_failures)
    except ray.train.TrainingFailedError as failure:
        told = failures.sentence(failure, train, options, room, position(run))
        if told is None:
            raise
        raise told from failure
    assert result.checkpoint is not None, f"training run {name} reported no checkpoint"
    return Path(result.checkpoint.path)


def _fitted(made: Callable[[], trainers.Trainer], run: Path, max_failures: int) -> ray.train.Result:
    """The result of a trainer; another one goes on with the run where the node of Ray Train's own actors was lost."""
    for left in range(max_failures, 0, -1):
        _drop_torn(run)
        try:
            return made().fit()
        except ray.train.ControllerError as error:
            if failures.never_started(error):
                raise
            logger.warning("Ray Train's controller failed (%s): the run goes on, %d times more", error, left)
    _drop_torn(run)
    return made().fit()


def inputs_folder(storage: Path, name: str) -> Path:
    """Where a run's workers find what was prepared for them."""
    return storage / f"{name}-inputs"


def sweep(storage: Path, kind: str, keep: str | None = None) -> None:
    """Remove the checkpoints and inputs of all runs of `kind`, but for those of the run `keep`."""
    artifact.sweep_runs(storage, kind, () if keep is None else (keep, inputs_folder(storage, keep).name))


def _work(loop: Loop, threads: int, room: str, config: dict[str, Any]) -> None:
    """One worker: the loop with our log lines shown and as many torch threads as the worker has CPUs."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train set up the handler, and reports at INFO what we do too
    logging.getLogger("rec").setLevel(logging.INFO)
    torch.set_num_threads(threads)
    try:
        loop(config)
    except Exception as error:
        told = failures.out_of_memory(error, room)
        if told is None:
            raise
        raise told from error


def position(run: Path) -> Position:
    """Where the run would go on."""
    start = Position(0, [])
    if not (run / SNAPSHOT).exists():
        return start
    try:
        last = json.loads((run / SNAPSHOT).read_text(encoding="utf-8"))["latest_checkpoint_result"]
    except ValueError:
        return start  # torn: it would start over
    return start if last is None else checkpoint.read(run / last["checkpoint_dir_name"])


def _drop_torn(run: Path) -> None:
    """Start over when Ray's list of checkpoints was being written at the moment of a kill: it is not atomic."""
    snapshot = run / SNAPSHOT
    if not snapshot.exists():
        return
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("%s is torn: the run starts over", snapshot)
        shutil.rmtree(run)


def distribute(module: nn.Module) -> nn.Module:
    """`module` on this worker's device, its gradients averaged over the workers when there are several."""
    module = module.to(get_device())
    # Our buffers are tables that no step changes, and what all workers agree on between epochs (`from_first`): to send
    # them with every step would cost more than the gradients.
    return DistributedDataParallel(module, broadcast_buffers=False) if world_size() > 1 else module


def plain(module: nn.Module) -> nn.Module:
    """The module without its data-parallel wrapper."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def rank() -> int:
    """Number of this worker, 0-based."""
    return int(ray.train.get_context().get_world_rank())


def world_size() -> int:
    """How many workers there are."""
    return int(ray.train.get_context().get_world_size())


def from_first(value: float) -> float:
    """Worker 0's `value` on every worker: what they measure may differ in its last bits, what follows from it not."""
    if world_size() == 1:
        return value  # without a wait for the device
    found = torch.tensor([value], dtype=torch.float64, device=get_device())
    torch.distributed.broadcast(found, 0)
    return float(found)


def fresh() -> bool:
    """Whether the run starts from nothing, and not from a checkpoint."""
    return ray.train.get_checkpoint() is None


@dataclass(slots=True)
class Epoch:
    """One pass over the training rows."""

    number: int
    """0-based."""
    total: int
    rng: np.random.Generator
    """Seeded by (seed, epoch): the same on every worker, for orders and masks that must agree."""
    what: str = "training"
    """What is trained, for messages."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the loop measured; reported with the checkpoint."""
    earlier: list[dict[str, float]] = field(default_factory=list)
    """The metrics of the epochs before."""
    remedy: str = ""
    """What a user may do where the numbers of the training went wrong."""
    first: int = 0
    """The step to go on with, first of a block: those before are in the checkpoint that the run was restored from."""
    saved: int = 0
    """Steps of it that the last checkpoint has."""
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """float64 scalars, see `add`."""
    between: Callable[[int], None] = lambda number: None
    """Called with the number of each block's first step, before that is made."""

    def failed(self, said: str) -> TrainingError:
        """The end of a training in this epoch: what went wrong, what helps, and where another run would go on."""
        kept = Position(self.number, self.earlier, self.saved)
        return TrainingError(f"{said}: {self.remedy}; {failures.going_on(kept)}")

    def add(self, **values: torch.Tensor) -> None:
        """Sum up scalars over the steps of the epoch, on their device."""
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value

    def mean(self, name: str, steps: int) -> float:
        """The mean of what `add` summed up over `steps` steps; raises TrainingError where that is no number."""
        return self.totals()[name] / steps

    def totals(self) -> dict[str, float]:
        """What `add` summed up; raises TrainingError where that is no number."""
        found = {name: float(value) for name, value in self.sums.items()}
        for name, value in found.items():
            if not math.isfinite(value):
                raise self.failed(f"the {self.what}'s {name} in epoch {self.number + 1} is no number")
        return found

    def progress(self, steps: Iterable[T], *, count: int) -> Iterator[tuple[int, T]]:
        """Yield the steps from `first` to `count` by number, each with what belongs to it, of `steps`.

        Worker 0 logs how far it is, every ten seconds.
        """
        shown, first, coming = rank() == 0, self.first, iter(steps)
        started = last = time.monotonic()
        for number in range(first, count):
            if number % BLOCK_STEPS == 0:
                self.between(number)
            step = next(coming)
            now = time.monotonic()
            if shown and now - last >= PROGRESS_S:
                last = now
                each = (now - started) / (number - first) if number > first else float("nan")
                logger.info(
                    "%s: epoch %d/%d, step %d/%d, %.0f s left in the epoch, %.0f s in the training",
                    self.what,
                    self.number + 1,
                    self.total,
                    number,
                    count,
                    each * (count - number),
                    each * (count * (self.total - self.number) - number),
                )
            yield number, step


def checkpointed_epochs(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Train,
    *,
    what: str,
    epochs: int,
    seed: int,
    remedy: str,
) -> Iterator[Epoch]:
    """Yield the epochs still to do, after restoring `module` and `optimizer` from the run's last checkpoint.

    Before each block of steps torch is seeded by (seed, epoch, rank, block), before all of an epoch as before block 0.
    After each epoch module, optimizer, position and `epoch.metrics` (those of worker 0) are saved, and between two
    blocks, with `epoch.sums`, where `train.checkpoint_minutes` have passed. Every worker must go through all epochs and
    their blocks. `what` names the training in messages.

    Raises TrainingError with the `remedy` where a sum or a weight is no finite number before a checkpoint: the losses
    may all have been finite, for the last gradient shows in none. The checkpoint before stays.
    """
    begun = Position(0, [])
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            begun = checkpoint.load(Path(folder), plain(module), optimizer)
        if rank() == 0:
            logger.info("going on after %s of %d", failures.where(begun), epochs)
    saved = time.monotonic()
    history = list(begun.history)
    for number in range(begun.epoch, epochs):
        rng = np.random.default_rng([seed, number])
        epoch = Epoch(number, epochs, rng, what, earlier=list(history), remedy=remedy)
        if number == begun.epoch:
            epoch.first = epoch.saved = begun.step
            epoch.sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in begun.sums.items()}

        def between(step: int, epoch: Epoch = epoch) -> None:
            nonlocal saved
            if step > epoch.saved and from_first(time.monotonic() - saved) >= 60 * train.checkpoint_minutes:
                totals = epoch.totals()
                _check_finite(module, epoch)
                _report(module, optimizer, {}, Position(epoch.number, epoch.earlier, step, totals))
                epoch.saved, saved = step, time.monotonic()
            torch.manual_seed(_seed(seed, epoch.number, rank(), step // BLOCK_STEPS))

        epoch.between = between
        started = time.monotonic()
        between(0)
        yield epoch
        _check_finite(module, epoch)
        history.append(epoch.metrics)
        if rank() == 0:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items())
            logger.info("epoch %d/%d done in %.0f s: %s", number + 1, epochs, time.monotonic() - started, shown)
        _report(module, optimizer, epoch.metrics, Position(number + 1, list(history)))
        saved = time.monotonic()


def _check_finite(module: nn.Module, epoch: Epoch) -> None:
    """The same decision on every worker, so that none waits for another one's report."""
    named = dict(plain(module).named_parameters())
    finite = torch.stack([value.detach().isfinite().all() for value in named.values()]).to(torch.int32)
    if world_size() > 1:
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    if not finite.all():
        name = list(named)[int(finite.argmin())]
        raise epoch.failed(
            f"epoch {epoch.number + 1} of {epoch.total} left weights that are no numbers, first in {name}, though its "
            "losses were: a gradient overflowed"
        )


def _report(module: nn.Module, optimizer: torch.optim.Optimizer, metrics: dict[str, float], reached: Position) -> None:
    """Report metrics on every worker and the checkpoint on worker 0; waits for all workers."""
    if rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), plain(module), optimizer, reached)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def batches(
    rows: int, batch_size: int, rng: np.random.Generator, order: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """This worker's part of each global batch of one epoch, in a shuffled order of `rows` rows, or in `order`.

    Global batches have one size, at most `batch_size` but at least one row a worker; the few rows that do not
    fill one are left out, others each epoch. Raises ConfigError when there are fewer rows than workers.
    """
    workers = world_size()
    each = rows // workers  # rows of one worker in the epoch
    if each == 0:
        raise ConfigError(f"{rows} training rows are too few for {workers} workers: lower train.num_workers")
    count = -(-each // max(1, batch_size // workers))
    share = each // count
    size = share * workers
    order = rng.permutation(rows) if order is None else order
    first = rank() * share
    return [order[start + first : start + first + share] for start in range(0, count * size, size)]
