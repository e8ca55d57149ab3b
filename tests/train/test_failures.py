"""What is tried again of a training, and in which words it ends: without Ray."""

import pickle
from collections.abc import Callable

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from rec.config import Train
from rec.errors import InputError, TrainingError
from rec.train import failures
from rec.train.checkpoint import Position

TRAIN = Train(num_workers=2, cpus_per_worker=3, max_failures=1, wait_minutes=4)
RAISE, RETRY = FailureDecision.RAISE, FailureDecision.RETRY
LATE = ControllerError(WorkerGroupStartupTimeoutError(2))
DEAD_START = ControllerError(WorkerGroupStartupFailedError("the workers\nfailed to import"))
DRAINED = PreemptionError(PreemptionInfo(None, {"a node": [1]}))
DIED = WorkerGroupError("died", {1: WorkerHealthCheckFailedError("a check", ActorDiedError())})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time; and what the cluster has is told."""
    now = [0.0]
    monkeypatch.setattr(failures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(failures, "had", lambda: "the cluster has 3 CPUs")
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    return lambda to: now.__setitem__(0, to)


def policy() -> failures.Policy:
    made = failures.Policy(FailureConfig(max_failures=1), 60 * TRAIN.wait_minutes, failures.asked(TRAIN))
    found: failures.Policy = pickle.loads(pickle.dumps(made))  # it goes to the controller's process
    return found


def test_a_killed_worker_is_tried_again_and_what_a_user_can_mend_is_not(clock: Callable[[float], None]) -> None:
    decide = policy().make_decision
    assert decide(WorkerGroupError("", {0: RuntimeError("gone"), 1: InputError("no such file")})) == RAISE
    assert [decide(DIED), decide(DIED)] == [RETRY, RAISE]


def test_room_is_waited_for_so_long_at_each_start(
    clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    decide = policy().make_decision
    for seconds, decision in ((60, RETRY), (120, RETRY), (180, RETRY)):
        clock(seconds)
        assert decide(LATE) == decision
    assert "2 workers x 3 CPUs: waiting for 3.0 of at most 4.0 minutes; the cluster has 3 CPUs" in caplog.text
    assert decide(DIED) == RETRY, "they had started after all"
    clock(900)
    assert decide(LATE) == RETRY
    clock(1_080)
    assert decide(LATE) == RAISE


def test_workers_that_die_in_their_start_are_tried_again_so_often_and_not_so_long(
    clock: Callable[[float], None],
) -> None:
    decide = failures.Policy(FailureConfig(max_failures=1), 30, "2 workers").make_decision
    clock(1)
    assert decide(DEAD_START) == RETRY, "nothing was waited for yet"
    clock(2)
    assert decide(DEAD_START) == RAISE, "an error of the start itself is only met again"
    decide = policy().make_decision
    clock(60)
    assert decide(LATE) == RETRY
    clock(200)
    assert decide(DEAD_START) == RETRY
    clock(400)
    assert decide(LATE) == RETRY, "there had been room: it is waited for anew"


def test_drained_nodes_are_tried_again_so_often(clock: Callable[[float], None]) -> None:
    made = failures.Policy(FailureConfig(max_failures=0, max_preemption_failures=1), 30, "2 workers")
    assert [made.make_decision(DRAINED), made.make_decision(DRAINED)] == [RETRY, RAISE]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            LATE,
            "2 workers x 3 CPUs could not be had within 4 minutes: the cluster has 3 CPUs; add nodes, raise "
            "tower.train.wait_minutes or lower tower.train.num_workers; run again with the same options it goes on "
            "after epoch 5, with others it starts over",
        ),
        (
            DEAD_START,
            "2 workers x 3 CPUs had room and died in their start 2 times, the last time so: the workers failed to "
            "import. The logs of their nodes tell why; run again with",
        ),
        (
            ControllerError(InsufficientClusterResourcesError("at most 4 CPUs")),
            "2 workers x 3 CPUs could not be had (at most 4 CPUs): the cluster has 3 CPUs; add nodes",
        ),
        (DIED, "workers of the training died 2 times, the last time so: The actor died unexpectedly before finishing"),
        (
            ControllerError(ActorDiedError()),
            "the process that leads the training died 2 times, the last time so: The actor died",
        ),
        (
            DRAINED,
            "nodes of the training were drained 2 times: use nodes that stay, or raise tower.train.max_failures; run",
        ),
        (
            WorkerGroupError("", {0: WorkerHealthCheckFailedError("a check", OutOfMemoryError("low on memory"))}),
            "so: low on memory. Where memory ran out, as the system's log tells, lower tower.chunk_size; run again",
        ),
    ],
)
def test_how_a_run_ends_is_one_sentence(clock: Callable[[float], None], failure: Exception, said: str) -> None:
    told = failures.sentence(failure, TRAIN, "tower.train", "tower.chunk_size", Position(5, [{}] * 5))
    assert isinstance(told, TrainingError)
    assert said in str(told)


def test_a_mistake_of_the_program_has_no_sentence(clock: Callable[[float], None]) -> None:
    wrong = WorkerGroupError("", {0: ZeroDivisionError("x")})
    assert failures.sentence(wrong, TRAIN, "train", "batch", Position(0, [])) is None
    assert failures.out_of_memory(ValueError("x"), "batch") is None
    mended = InputError("mend it")
    assert failures.sentence(WorkerGroupError("", {1: mended}), TRAIN, "train", "batch", Position(0, [])) is mended


def test_a_worker_without_memory_names_what_to_lower() -> None:
    told = failures.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "a or b")
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB): lower a or b, with which" in str(told)
    assert failures.out_of_memory(MemoryError(), "a or b") is not None
