"""Ray Train's trainer as our trainings use it: its policy of failures, and fewer processes beside the workers."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rec.config import Train
from rec.train import checkpoint as checkpoints
from rec.train import curves, failures

logger = logging.getLogger(__name__)


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
    """Draws a run's learning curves into its folder while it trains, once in EVERY_S: workers wait for the controller,
    which calls this, and drawing takes it up to a second."""

    EVERY_S = 30.0

    def __init__(self, run: Path) -> None:
        self._run = run
        self._drawn: float | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Of a page that could not be drawn the log says so: the training goes on."""
        now = time.monotonic()
        self._drawn = now if self._drawn is None else self._drawn
        if checkpoint is None or not metrics[0] or now - self._drawn < self.EVERY_S:
            return
        self._drawn = now
        try:
            curves.write(self._run, self._run.name, checkpoints.read(Path(checkpoint.path)).history)
        except Exception as error:
            logger.warning("learning curves of %s were not drawn: %s", self._run.name, error)


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
