"""Calibration against worlds whose chances are known, and against a slow twin."""

from typing import Any

import numpy as np
import pytest

from rec.evaluate import calibration


def _figures(logits: list[np.ndarray], hits: np.ndarray, resamples: int) -> dict[str, Any]:
    return calibration.figures([calibration.softmax(row) for row in logits], hits, resamples, 1)


def _requests(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits float32[8] of each request, and hits drawn by the chances they say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 8)).astype(np.float32)
    hits = [int(rng.choice(8, p=calibration.softmax(row))) for row in logits]
    return list(logits), np.array(hits)


def test_scores_that_say_the_true_chances_are_calibrated_and_louder_ones_are_not() -> None:
    covered = 0
    for seed in range(4):
        logits, hits = _requests(2_000, seed)
        honest = _figures(logits, hits, 200)
        loud = _figures([3 * row for row in logits], hits, 200)
        assert honest["ece"] < 0.02 < 0.05 < loud["ece"]
        assert loud["bins"][-1]["rate"] < loud["bins"][-1]["predicted"], "surer than right"
        covered += sum(b["ci95"][0] <= b["predicted"] <= b["ci95"][1] for b in honest["bins"])
    assert covered >= 34, "of 40 intervals of 95 %"
    assert (honest["requests"], honest["candidates"]) == (2_000, 16_000)
    assert [b["candidates"] for b in honest["bins"]] == [1_600] * 10
    assert all(a["predicted"] <= b["predicted"] for a, b in zip(honest["bins"], honest["bins"][1:], strict=False))


def test_the_bins_equal_a_slow_loop_and_requests_without_a_hit_do_not_count() -> None:
    logits, hits = _requests(25, 3)
    hits[::5] = -1
    found = _figures(logits, hits, 100)
    pairs = sorted(
        (float(chance), place == hit)
        for row, hit in zip(logits, hits.tolist(), strict=True)
        if hit >= 0
        for place, chance in enumerate(np.exp(row) / np.exp(row).sum())
    )
    assert found["requests"] == 20
    for number, each in enumerate(found["bins"]):
        part = pairs[16 * number : 16 * (number + 1)]
        assert each["predicted"] == pytest.approx(sum(chance for chance, _ in part) / 16, abs=1e-5)
        assert each["rate"] == pytest.approx(sum(hit for _, hit in part) / 16, abs=1e-5)
    gaps = [abs(each["predicted"] - each["rate"]) for each in found["bins"]]
    assert found["ece"] == pytest.approx(sum(gaps) / 10, abs=1e-5)


def test_without_any_hit_there_is_no_error_to_report() -> None:
    logits, hits = _requests(3, 0)
    found = _figures(logits, np.full_like(hits, -1), 100)
    assert found == {"requests": 0, "candidates": 0, "ece": None, "bins": []}
