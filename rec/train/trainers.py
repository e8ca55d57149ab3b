"""Ray Train's trainer as our trainings use it: its policy of failures, and fewer processes beside the workers."""

import os
from pathlib import Path
from typing import Any

from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rec.config import Train
from rec.train import curves, failures
from rec.train.checkpoint import read


class Trainer(TorchTrainer):
    """With our policy of failures, and without Ray Train's manager of data sets, a process of its own for every start:
    our loops read artifacts."""

    def __init__(self, *arguments: Any, train: Train, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._train = train

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        usual = given["failure_policy"].failure_config
        policy = failures.Policy(usual, 60 * self._train.wait_minutes, failures.asked(self._train))
        return super()._initialize_and_run_controller(**{**given, "failure_policy": policy})  # type: ignore[misc]

    def _create_default_callbacks(self) -> list[Any]:
        return self._without(DatasetsCallback)

    def _without(self, *unwanted: type) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # typed as Ray Train V1
        return [callback for callback in callbacks if not isinstance(callback, unwanted)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to Python: Ray Train's handler stays after the run, swallows it, and keeps the run's process."""


class Curves(UserCallback):
    """Keeps the page of a run's learning curves as new as its last checkpoint."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """The controller calls this, on a machine that has the storage as the workers have it."""
        history = [] if checkpoint is None else read(Path(checkpoint.path)).history
        if history:
            curves.write(self._run, self._run.name, history)


class LocalTrainer(Trainer):
    """For a Ray that `rec.runtime` started: without its dashboard two watchers of Ray Train fail, one every second.

    They tidy up after a lost node or driver, which a Ray on one machine does not outlive.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # also the wait for each report; usually 2
        super().__init__(*arguments, **options)

    def _create_default_callbacks(self) -> list[Any]:
        return self._without(DatasetsCallback, PlacementGroupCleanerCallback)


def kind() -> type[Trainer]:
    """The one for the Ray that this process is connected to."""
    return Trainer if os.environ.get("RAY_ADDRESS") else LocalTrainer
