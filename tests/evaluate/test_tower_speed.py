"""What rounds of training tell, of seconds that are known."""

import numpy as np
import pytest

from rec.config import ItemTrain
from rec.evaluate import tower_speed

INSIDE = np.array([[10.0, 1.0, 8.0, 18.0, 0.5], [20.0, 1.0, 17.0, 30.0, 4.0], [10.0, 2.0, 7.0, 16.0, 1.0]])
"""Seconds of three runs on two processors: in all, until batches were there, within steps, of CPU time, and idle."""
BARE = np.array([9.8, 18.0, 9.9])


def test_a_round_is_compared_with_its_own_bare_loop() -> None:
    """The second round was slow in both; of medians, 9.9 / 10 would be told, and no spread."""
    figures = tower_speed.profile(500, INSIDE, BARE, ItemTrain(cpus_per_worker=2))
    ratio = figures["train.over.torch"]
    assert (ratio["value"], ratio["ci95"], ratio["goal"]) == (0.98, None, 0.98)
    assert [figures[f"train.over.torch.{end}"]["value"] for end in ("least", "greatest")] == [0.9, 0.99]
    assert figures["train.products_per_s"]["value"] == 50.0


def test_busy_is_of_the_processors_and_what_limits_is_named() -> None:
    figures = tower_speed.profile(500, INSIDE, BARE, ItemTrain(cpus_per_worker=2))
    shares = {name: figures[f"train.{name}"]["value"] for name in ("busy", "idle", "batches", "step", "around")}
    assert shares == pytest.approx({"busy": 0.8, "idle": 0.1, "batches": 0.1, "step": 0.8, "around": 0.1}, abs=1e-4)
    assert {name for name in figures if name.startswith("train.limit")} == {"train.limit.step"}
    waits = INSIDE[:, [0, 2, 1, 3, 4]]
    assert "train.limit.batches" in tower_speed.profile(500, waits, BARE, ItemTrain())


def test_on_a_gpu_busy_is_what_is_not_waited_for() -> None:
    figures = tower_speed.profile(500, INSIDE, BARE, ItemTrain(use_gpu=True))
    assert figures["train.busy"]["value"] == pytest.approx(1 - figures["train.batches"]["value"])
