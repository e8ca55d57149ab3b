"""Probabilities: the softmax when nothing is fitted, the true chances when they are, always the order of the scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.models.probability import log_odds
from rec.train import calibrate
from rec.train.calibrate import Scored
from tests.ranker import models


def _scored(requests: int, loud: float, seed: int = 0) -> Scored:
    """Scores that are `loud` times the logits by which the targets were drawn, in lists of unequal length."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 12, requests)
    scores, labels = [], []
    for count in counts.tolist():
        logits = rng.normal(0, 1.5, count)
        chance = np.exp(logits) / np.exp(logits).sum()
        labels.append(int(rng.choice(count, p=chance)))
        scores.append(loud * logits + rng.normal())  # a level of the request's own says nothing
    return Scored(np.concatenate(scores).astype(np.float32), counts, np.array(labels))


def test_without_temperature_and_bias_it_is_the_softmax() -> None:
    scored = _scored(20, 1.0)
    ends = np.cumsum(scored.counts)[:-1]
    expected = [np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in np.split(scored.scores.astype(float), ends)]
    np.testing.assert_allclose(scored.probabilities(), np.concatenate(expected), atol=1e-9)


@pytest.mark.parametrize("loud", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_planted_is_found_and_calibrates(loud: float) -> None:
    scored = _scored(3_000, loud)
    temperature, bias = calibrate.fit(scored)
    assert temperature == pytest.approx(loud, rel=0.1)
    assert abs(bias) < 0.1
    found = calibrate.figures(scored, temperature, bias)
    assert found["logloss"]["after"] <= found["logloss"]["before"]
    assert found["ece"]["after"] < 0.02
    if loud == 3.0:
        assert found["ece"]["before"] > 2 * found["ece"]["after"]


def test_a_fit_to_what_says_nothing_is_finite() -> None:
    for scored in (
        Scored(np.zeros(1, np.float32), np.array([1]), np.array([0])),
        Scored(np.array([5, -5], np.float32), np.array([2]), np.array([0])),
        Scored(np.zeros(6, np.float32), np.array([3, 3]), np.array([0, 2])),
    ):
        temperature, bias = calibrate.fit(scored)
        assert temperature > 0
        assert np.isfinite([temperature, bias]).all()
        assert np.isfinite(scored.probabilities(temperature, bias)).all()
    assert calibrate.figures(Scored(np.zeros(1, np.float32), np.array([1]), np.array([0])), 1.0, 0.0)["auc"] is None


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    temperature=st.floats(0.05, 20),
    bias=st.floats(-3, 3),
)
def test_the_order_is_that_of_the_scores(scores: list[float], temperature: float, bias: float) -> None:
    values = np.sort(np.array(scores, np.float32))
    odds = log_odds(torch.from_numpy(values), torch.tensor([temperature]), torch.tensor([bias]))
    assert (torch.diff(odds) >= -1e-9).all()


@pytest.mark.parametrize("name", models.NAMES)
def test_served_probabilities_are_those_that_were_fitted(name: str) -> None:
    ranker = models.random(name).export()
    ranker.temperature.fill_(1.6)
    ranker.odds_bias.fill_(0.3)
    scores = ranker.score(models.inputs(np.random.default_rng(1), 30))
    scored = Scored(scores, np.array([30]), np.array([4]))
    found = ranker.probabilities(scores)
    np.testing.assert_allclose(found, scored.probabilities(1.6, 0.3), atol=1e-6)
    assert np.argsort(-found, kind="stable")[0] == np.argmax(scores)
