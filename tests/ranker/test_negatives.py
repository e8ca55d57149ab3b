"""Sampled negatives stand for all candidates: the chances are as documented, and sums are met on average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.train.listwise import listwise_loss, pointwise_loss
from rec.train.negatives import choose, inclusion


@given(count=st.integers(1, 200), draws=st.integers(1, 220))
def test_chances_are_the_documented_formula(count: int, draws: int) -> None:
    chances = inclusion(count, draws)
    assert chances.sum() == pytest.approx(min(draws, count))
    assert (np.diff(chances) <= 0).all()
    assert 0 < chances.min() <= chances.max() <= 1
    scale = chances * np.sqrt(np.arange(1, count + 1))
    below = chances < 1
    if below.any():
        np.testing.assert_allclose(scale[below], scale[below][0], rtol=1e-9)
        assert (scale[~below] <= scale[below][0] * (1 + 1e-9)).all(), "a sure one would exceed 1"


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), draws=st.integers(1, 30), seed=st.integers(0, 999))
def test_exactly_so_many_are_drawn_and_the_target_always_takes_part(counts: list[int], draws: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array(counts)
    labels = rng.integers(0, sizes)
    kept, log_q = choose(sizes, labels, draws, rng.random(len(sizes)))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    assert np.bincount(owner, kept).tolist() == np.minimum(sizes, draws + 1).tolist()
    targets = np.cumsum(sizes) - sizes + labels
    assert kept[targets].all()
    assert not log_q[targets].any()
    if draws >= sizes.max():
        assert kept.all()
        assert not log_q.any()


def test_a_request_draws_the_same_whatever_is_in_the_batch_with_it() -> None:
    sizes, labels, uniform = np.array([20, 7, 33]), np.array([3, 0, 32]), np.array([0.1, 0.9, 0.5])
    together = choose(sizes, labels, 4, uniform)[0]
    alone = [choose(sizes[i : i + 1], labels[i : i + 1], 4, uniform[i : i + 1])[0] for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_over_all_draws_the_losses_estimate_those_of_all_candidates() -> None:
    """The partition sum of the softmax and the pointwise loss are met by the mean over u, on a fine grid of u."""
    size, label, draws, grid = 30, 4, 6, 4_000
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=size))
    counts, labels = torch.tensor([size]), torch.tensor([label])
    exact = pointwise_loss(logits, counts, labels, torch.zeros(size), counts).item()
    own = logits[label]
    rest = torch.logsumexp(logits, 0).exp().item()
    pointwise, partition, listwise = [], [], []
    for u in (np.arange(grid) + 0.5) / grid:
        kept, log_q = choose(np.array([size]), np.array([label]), draws, np.array([u]))
        part, q = logits[torch.from_numpy(kept)], torch.from_numpy(log_q[kept])
        few, place = torch.tensor([len(part)]), torch.tensor([int(kept[:label].sum())])
        pointwise.append(pointwise_loss(part, few, place, q, counts).item())
        loss = listwise_loss(part - q, few, place).item()
        listwise.append(loss)
        partition.append(np.exp(loss + own.item()))
    assert np.mean(pointwise) == pytest.approx(exact, rel=2e-3)
    assert np.mean(partition) == pytest.approx(rest, rel=2e-3)
    full = listwise_loss(logits, counts, labels).item()
    assert np.mean(listwise) == pytest.approx(full, abs=0.1)
    assert np.std(pointwise) > 0
