"""How a training on Ray Train ends that cannot go on: what is tried again, and the sentence for whoever started it.

Tried again is what may go better: a killed worker, a drained node and workers that died in their start, `max_failures`
times each, and a start for which the cluster has no room, for `wait_minutes`. What a user can mend ends the run at
once: it would only be met again.
"""

import logging
import os
import time
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.constants import DEFAULT_WORKER_GROUP_START_TIMEOUT_S, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError

from rec import runtime
from rec.config import Train
from rec.errors import RecError, TrainingError
from rec.train.checkpoint import Position

NO_ROOM = (WorkerGroupStartupTimeoutError, InsufficientClusterResourcesError)

logger = logging.getLogger(__name__)


class Policy(DefaultFailurePolicy):
    """What Ray Train's controller does about a failure. Of itself it repeats all that a worker raises, and without an
    end and a word waits for room and starts workers that die in their start."""

    def __init__(self, failures: FailureConfig, wait_s: float, asked: str) -> None:
        """`wait_s` is how long workers may take to start, `asked` what they need."""
        super().__init__(failures)
        self._wait_s = wait_s
        self._asked = asked
        self._since: float | None = None
        self._failed_starts = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Whether to try again."""
        if mistake(training_failed_error) is not None:
            return FailureDecision.RAISE
        why = getattr(training_failed_error, "controller_failure", None)
        if not isinstance(why, WorkerGroupStartupTimeoutError):
            self._since = None  # there was room
            self._failed_starts += isinstance(why, WorkerGroupStartupFailedError)
            if self._failed_starts > self.failure_config.max_failures:
                return FailureDecision.RAISE
            return super().make_decision(training_failed_error)
        now = time.monotonic()
        if self._since is None:
            self._since = now - _start_timeout()
        waited = now - self._since
        if waited >= self._wait_s:
            return FailureDecision.RAISE
        logger.warning(
            "%s: waiting for %.1f of at most %.1f minutes; %s", self._asked, waited / 60, self._wait_s / 60, had()
        )
        return super().make_decision(training_failed_error)


def mistake(failure: BaseException) -> RecError | None:
    """What a worker met that a user can mend."""
    errors: dict[int, Exception] = getattr(failure, "worker_failures", {})
    found = (each for error in errors.values() for each in (error.__cause__, error))
    return next((each for each in found if isinstance(each, RecError)), None)


def never_started(failure: ray.train.ControllerError) -> bool:
    """Whether the workers could not be had, so that another try would be in vain."""
    return isinstance(failure.controller_failure, (*NO_ROOM, WorkerGroupStartupFailedError))


def sentence(failure: Exception, train: Train, options: str, room: str, position: Position) -> RecError | None:
    """What to tell of a failed run; None for a mistake of this program's.

    `options` is the name of the branch `train`, `room` names what to lower for want of memory; another run would go on
    at `position`.
    """
    met = mistake(failure)
    if met is not None:
        return met
    times = f"{train.max_failures + 1} times"
    why = getattr(failure, "controller_failure", None)
    if isinstance(why, WorkerGroupStartupFailedError):
        return TrainingError(
            f"{asked(train)} had room and died in their start {times}, the last time so: {_line(why)}. The logs of "
            f"their nodes tell why; {going_on(position)}"
        )
    if isinstance(why, NO_ROOM):
        late = isinstance(why, WorkerGroupStartupTimeoutError)
        told = f" within {train.wait_minutes:g} minutes" if late else f" ({_line(why)})"
        return TrainingError(
            f"{asked(train)} could not be had{told}: {had()}; add nodes, raise {options}.wait_minutes or lower "
            f"{options}.num_workers; {going_on(position)}"
        )
    if isinstance(failure, PreemptionError):
        return TrainingError(
            f"nodes of the training were drained {times}: use nodes that stay, or raise {options}.max_failures; "
            f"{going_on(position)}"
        )
    lost = _death(why)
    if lost is not None:
        return TrainingError(
            f"the process that leads the training died {times}, the last time so: {_line(lost)}. Where memory of its "
            f"node ran out, as the system's log tells, free some; {going_on(position)}"
        )
    deaths = [death for death in map(_death, getattr(failure, "worker_failures", {}).values()) if death is not None]
    if deaths:
        return TrainingError(
            f"workers of the training died {times}, the last time so: {_line(deaths[0])}. Where memory ran out, as the "
            f"system's log tells, lower {room}; {going_on(position)}"
        )
    return None


def out_of_memory(error: Exception, room: str) -> TrainingError | None:
    """What a worker raises instead of `error` where that is want of memory; `room` names what to lower."""
    wanted = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    if not wanted:
        return None
    return TrainingError(
        f"a training worker is out of memory ({_line(error)}): lower {room}, with which the training starts over, or "
        "free memory and run again, to go on after the last checkpoint"
    )


def going_on(position: Position) -> str:
    """What another run makes of what this one has saved."""
    if not position.epoch and not position.step:
        return "nothing of it was saved yet"
    return f"run again with the same options it goes on after {where(position)}, with others it starts over"


def where(position: Position) -> str:
    """As in: it goes on after ..."""
    if not position.step:
        return f"epoch {position.epoch}"
    return f"step {position.step} of epoch {position.epoch + 1}"


def check_room(train: Train, options: str) -> None:
    """Let the log of a cluster say where it has no room for the workers as yet; it may grow.

    Raises ConfigError where a Ray of this process has none: it would be waited for in vain.
    """
    runtime.require_gpus(f"{options}.use_gpu", train.use_gpu * train.num_workers)
    cpus = train.num_workers * train.cpus_per_worker
    runtime.require_cpus(f"{options}.num_workers", f"{options}.cpus_per_worker", cpus)
    fit = sum(_fitting(train, node["Resources"]) for node in ray.nodes() if node["Alive"])
    if fit < train.num_workers:
        logger.warning(
            "%s, but there is room for %d now (%s): this waits for more nodes, at most %s.wait_minutes=%g",
            asked(train),
            fit,
            had(),
            options,
            train.wait_minutes,
        )


def asked(train: Train) -> str:
    """What the workers need."""
    gpu = " and a GPU each" if train.use_gpu else ""
    return f"{train.num_workers} worker{'s' * (train.num_workers > 1)} x {train.cpus_per_worker} CPUs{gpu}"


def had() -> str:
    """What there is."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    have, free = ray.cluster_resources(), ray.available_resources()
    told = [f"{have.get(kind, 0):g} {kind}s, {free.get(kind, 0):g} of them free" for kind in ("CPU", "GPU")]
    return f"the cluster has {' and '.join(told if have.get('GPU') else told[:1])}, on {nodes} nodes"


def _fitting(train: Train, node: dict[str, float]) -> int:
    """Workers for which a node has room."""
    cpus = node.get("CPU", 0) // train.cpus_per_worker
    return int(min(cpus, node.get("GPU", 0)) if train.use_gpu else cpus)


def _start_timeout() -> float:
    """Seconds after which Ray Train counts a start as failed."""
    return float(os.environ.get(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, DEFAULT_WORKER_GROUP_START_TIMEOUT_S))


def _death(error: Any) -> Exception | None:
    """How a worker's process ended, where it did not end by an exception of its own."""
    within = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    return within if isinstance(within, (RayActorError, OutOfMemoryError)) else None


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split())[:200] or type(error).__name__).rstrip(". ")
