"""Item table and loss: the bound, cold items, the softmax against slow twins and silent traps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rec.models.item_table import ItemTable
from rec.train.softmax import Candidates, cross_entropy, over_all
from tests.user_tower.world import NUM_ITEMS, WIDTH, item_vectors, unit_rows

ALL = torch.arange(NUM_ITEMS)


@pytest.mark.parametrize("bound", [0.1, 0.5])
def test_the_delta_is_bounded_and_cold_items_have_none(bound: float) -> None:
    warm = np.arange(0, NUM_ITEMS, 2)
    table = ItemTable(item_vectors(), warm, bound, WIDTH)
    torch.manual_seed(0)
    with torch.no_grad():
        table.delta.normal_(0, 1)
    norms = table.deltas(ALL).norm(dim=1).detach().numpy()
    assert norms.max() <= bound * (1 + 1e-5)
    assert norms[warm].min() > bound * 0.9
    assert (norms[1::2] == 0).all()
    np.testing.assert_allclose(table.export(nn.Identity())[1::2], item_vectors()[1::2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(table.export(nn.Identity()), axis=1), 1, atol=1e-5)
    table(ALL, nn.Identity()).square().mul(torch.randn(1, 16)).sum().backward()
    assert table.delta.grad is not None
    assert torch.isfinite(table.delta.grad).all()


def test_a_new_table_is_the_item_towers_and_can_learn_from_zero() -> None:
    table = ItemTable(item_vectors(), np.arange(5), 0.5, WIDTH)
    np.testing.assert_allclose(table.export(nn.Identity()), item_vectors(), atol=1e-6)
    (table(ALL, nn.Identity()) @ torch.ones(16)).sum().backward()
    assert table.delta.grad is not None
    assert (table.delta.grad.norm(dim=1) > 0).all()


def test_without_a_bound_nothing_is_learned_per_item() -> None:
    table = ItemTable(item_vectors(), np.arange(5), 0.0, WIDTH)
    assert list(table.parameters()) == []


def test_an_adapter_moves_cold_items_as_well_and_the_delta_comes_on_top() -> None:
    warm = np.arange(0, NUM_ITEMS, 2)
    table = ItemTable(item_vectors(), warm, 0.5, WIDTH)
    turn = torch.from_numpy(np.linalg.qr(unit_rows(np.random.default_rng(0), (16, 16)))[0])
    with torch.no_grad():
        table.delta.normal_(0, 1)
    moved = item_vectors() @ turn.numpy()
    found = table.export(lambda vectors: vectors @ turn)
    np.testing.assert_allclose(found[1::2], moved[1::2], atol=1e-6)
    off = moved[warm] + table.deltas(torch.from_numpy(warm)).detach().numpy()
    np.testing.assert_allclose(found[warm], off / np.linalg.norm(off, axis=1, keepdims=True), atol=1e-6)


def _loss(scores: torch.Tensor, place: list[int], log_q: torch.Tensor | None = None) -> float:
    found = cross_entropy(scores, torch.tensor(place), torch.zeros(scores.shape[1]) if log_q is None else log_q)
    return found.item()


def test_loss_falls_when_a_negatives_score_falls() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5]])
    lower = torch.tensor([[1.0, 2.0, -3.0]])
    assert _loss(lower, [0]) < _loss(scores, [0])
    assert _loss(scores + 7, [0]) == pytest.approx(_loss(scores, [0]), abs=1e-5)


def test_masking_an_item_equals_removing_it() -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(6)
    masked[2] = torch.inf  # weight 0: log(q / 0)
    keep = [0, 1, 3, 4, 5]
    assert _loss(scores, [0, 1, 3, 5], masked) == pytest.approx(_loss(scores[:, keep], [0, 1, 2, 4]), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 40))
def test_at_random_directions_the_loss_is_the_log_of_the_candidates(seed: int, count: int) -> None:
    scores = torch.zeros(5, count)
    torch.manual_seed(seed)
    assert _loss(scores, torch.randint(count, (5,)).tolist()) == pytest.approx(math.log(count), rel=1e-5)


def test_small_catalogues_are_used_whole_and_cold_items_count_less() -> None:
    counts = torch.ones(NUM_ITEMS, dtype=torch.int64)
    counts[50:] = 0
    rows, log_q = Candidates(counts, 0.1, 1_000)(torch.tensor([3, 3, 7]))
    assert rows.tolist() == list(range(NUM_ITEMS))
    assert _loss(torch.zeros(1, NUM_ITEMS), [3], log_q) == pytest.approx(math.log(50 + 10 * 0.1), rel=1e-5)
    rows, _ = Candidates(counts, 0.0, 1_000)(torch.tensor([3]))
    assert rows.tolist() == list(range(50))


def test_over_all_items_the_loss_and_its_gradients_are_those_of_the_scores() -> None:
    rng = np.random.default_rng(6)
    users, items = (torch.from_numpy(unit_rows(rng, (count, 16)) * 5).requires_grad_() for count in (70, NUM_ITEMS))
    counts = torch.ones(NUM_ITEMS, dtype=torch.int64)
    counts[50:] = 0
    place = torch.randint(50, (70,), generator=torch.Generator().manual_seed(3))
    rows, log_q = Candidates(counts, 0.1, 1_000)(place)
    losses = over_all(users, items[rows], place, log_q), cross_entropy(users @ items[rows].T, place, log_q)
    torch.testing.assert_close(*losses)
    found, expected = (torch.autograd.grad(loss, (users, items)) for loss in losses)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_sampled_softmax_estimates_the_full_one() -> None:
    """Mean over draws of the estimated denominator against the exact one, within four standard errors."""
    torch.manual_seed(0)
    num_items, positions = 3_000, 60
    counts = torch.randint(1, 50, (num_items,))
    choose = Candidates(counts, 1.0, 400)
    users = torch.from_numpy(unit_rows(np.random.default_rng(0), (1, 16)))
    items = torch.from_numpy(unit_rows(np.random.default_rng(1), (num_items, 16)))
    scores = (users @ items.T / 0.3)[0].double()
    target = 17
    exact = torch.logsumexp(scores, 0)
    shares = []
    for _ in range(300):
        targets = torch.multinomial(counts.double(), positions, replacement=True)
        targets[0] = target
        rows, log_q = choose(targets)
        assert len(torch.unique(rows)) == len(rows)
        assert torch.isin(targets, rows).all()
        place = torch.searchsorted(rows, torch.tensor([target]))
        loss = cross_entropy(scores[rows][None].float(), place, log_q)
        shares.append(torch.exp(loss.double() + scores[target] - exact).item())
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - 1) < 4 * error
    assert error < 0.02
