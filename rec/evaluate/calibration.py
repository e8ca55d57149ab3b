"""Do probabilities mean what they say: that a candidate is the next choice, given that one of the request's is? Where a
system has only scores, their softmax over the candidates is such a probability.

All candidates of the requests whose target is among them are sorted by probability into ten bins of equal size; each
has its mean probability and its rate of hits. ECE is the mean gap of the two over the candidates (Naeini et al.,
"Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015). Each request has one hit, so with 100
candidates the rate is .01 over all, and ECE is to be read beside that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.evaluate.bootstrap import interval, resampled_means

BINS = 10
DIGITS = 6

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Probabilities = NDArray[np.floating[Any]]


def figures(probabilities: Sequence[Probabilities], hits: Ints, resamples: int, seed: int) -> dict[str, Any]:
    """ECE and the bins, lowest first, of the probabilities float[K] of U requests; `hits` int64[U] is the target's
    place among them, below 0 where it is not there. Intervals of the rates are over requests.
    """
    asked = np.flatnonzero(hits >= 0)
    if not len(asked):
        return {"requests": 0, "candidates": 0, "ece": None, "bins": []}
    chances = [probabilities[request].astype(np.float64) for request in asked.tolist()]
    owner = np.repeat(np.arange(len(asked)), [len(each) for each in chances])
    chance = np.concatenate(chances)
    hit = np.concatenate([np.arange(len(each)) == hits[request] for each, request in zip(chances, asked, strict=True)])
    cell = owner * BINS + _bins(chance)
    counts, chance_sums, hit_sums = (
        np.bincount(cell, weights, len(asked) * BINS).reshape(-1, BINS) for weights in (None, chance, hit)
    )
    size = counts.sum(axis=0)  # [BINS]
    predicted, rate = (sums.sum(axis=0) / np.maximum(size, 1) for sums in (chance_sums, hit_sums))
    drawn = resampled_means(np.concatenate([counts, hit_sums], axis=1).astype(np.float64), resamples, seed)
    bounds = interval(drawn[:, BINS:] / np.maximum(drawn[:, :BINS], 1e-12))
    bins = [
        {
            "candidates": int(size[b]),
            "predicted": round(float(predicted[b]), DIGITS),
            "rate": round(float(rate[b]), DIGITS),
            "ci95": [round(float(bound), DIGITS) for bound in bounds[:, b]],
        }
        for b in np.flatnonzero(size).tolist()
    ]
    error = ece(chance, hit)
    return {"requests": len(asked), "candidates": len(chance), "ece": round(error, DIGITS), "bins": bins}


def ece(chance: NDArray[np.float64], hit: NDArray[np.bool_]) -> float:
    """ECE of T > 0 candidates of probability float[T] that are hits, or not, bool[T]."""
    cell = _bins(chance)
    gaps = np.bincount(cell, chance, BINS) - np.bincount(cell, hit, BINS)
    return float(np.abs(gaps).sum() / len(chance))


def _bins(chance: NDArray[np.float64]) -> Ints:
    """int64[T] bin of each candidate by its place in the order of probability."""
    place = np.empty(len(chance), np.int64)
    place[np.argsort(chance, kind="stable")] = np.arange(len(chance))
    return place * BINS // len(chance)


def softmax(logits: Floats) -> NDArray[np.float64]:
    """float64[K] that sum to 1."""
    scaled = np.exp(logits.astype(np.float64) - float(logits.max()))
    return scaled / scaled.sum()
