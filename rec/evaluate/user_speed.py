"""What one user's vector costs on one core, text encoding apart: alone, and in a batch."""

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval
from rec.models.user_tower import UserTower
from rec.state import UserState

HISTORY, BATCH = 50, 64
CALLS, BATCHES = 300, 50
GOAL_MS, BATCH_GOAL_MS = 3.0, 0.3

WARM_UP = 10
"""Calls that are not counted."""


def measure(trained: UserTower, resamples: int, seed: int) -> Figures:
    """`user_tower.ms` and `user_tower.batch64.ms`, per user: medians with intervals over calls.

    The tower has the sizes of `trained` and histories of HISTORY events; its weights, which change no time, are drawn.
    """
    rng = np.random.default_rng(seed)
    tower = UserTower(replace(trained.shape, history=HISTORY)).attach(trained.item_vectors.numpy()).eval()
    states = [_state(rng, tower) for _ in range(BATCH)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = _times(tower, [[states[call % BATCH]] for call in range(CALLS)])
        together = _times(tower, [states] * BATCHES) / BATCH
    finally:
        torch.set_num_threads(threads)
    return {
        "user_tower.ms": _median(alone, GOAL_MS, resamples, rng),
        f"user_tower.batch{BATCH}.ms": _median(together, BATCH_GOAL_MS, resamples, rng),
    }


def _state(rng: np.random.Generator, tower: UserTower) -> UserState:
    return UserState(
        items=rng.integers(0, len(tower.item_vectors), HISTORY),
        events=np.ones(HISTORY, np.int64),
        ages_s=np.sort(rng.exponential(1e6, HISTORY)).astype(np.float32)[::-1].copy(),
        context="",
        profile=rng.normal(size=len(tower.shape.profile_names)).astype(np.float32),
    )


def _times(tower: UserTower, requests: list[list[UserState]]) -> NDArray[np.float64]:
    """Milliseconds of each request."""
    for request in requests[:WARM_UP]:
        tower.vectors(request, None)
    times = []
    for request in requests:
        started = time.perf_counter()
        tower.vectors(request, None)
        times.append((time.perf_counter() - started) * 1e3)
    return np.array(times)


def _median(times: NDArray[np.float64], goal: float, resamples: int, rng: np.random.Generator) -> dict[str, object]:
    drawn = np.median(rng.choice(times, (resamples, len(times))), axis=1)
    low, high = interval(drawn[:, None])[:, 0].round(3).tolist()
    return figure(round(float(np.median(times)), 3), "ms", [low, high], goal)
