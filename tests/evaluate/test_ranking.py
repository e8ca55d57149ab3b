"""Full rankings against slow twins; which users are tested and what they may be recommended."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec import histories
from rec.evaluate import controls, ranking, slices
from rec.evaluate.cases import last_events
from rec.histories import Histories
from rec.retrieval import Excluded, popular, search
from tests.user_tower.world import NUM_ITEMS, START, make


def _excluded(num_items: int, rows: list[np.ndarray]) -> Excluded:
    """Rows that each user had before; no item is launched late."""
    return Excluded(np.full(num_items, -1, np.int64), np.zeros(len(rows), np.int64), rows)


def _draw(seed: int, num_items: int) -> tuple[np.random.Generator, np.ndarray, Excluded]:
    """A target per user, and excluded rows that are not it."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_items, 5)
    exclude = [np.flatnonzero((rng.random(num_items) < 0.3) & (np.arange(num_items) != t)) for t in targets]
    return rng, targets, _excluded(num_items, exclude)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 14))
def test_ranks_by_vectors_are_the_positions_in_search(seed: int, num_items: int) -> None:
    rng, targets, exclude = _draw(seed, num_items)
    items = rng.integers(-1, 2, (num_items, 2)).astype(np.float32)  # many exact ties
    users = rng.integers(-1, 2, (5, 2)).astype(np.float32)
    ranks = ranking.by_vectors(users, items, targets, exclude)
    rows, _ = search(users, items, num_items, exclude)
    assert [row.tolist().index(target) for row, target in zip(rows, targets, strict=True)] == ranks.tolist()


@given(st.integers(0, 2**31), st.integers(1, 14))
def test_ranks_by_order_are_positions_without_the_excluded(seed: int, num_items: int) -> None:
    rng, targets, exclude = _draw(seed, num_items)
    order = popular(rng.integers(0, 3, num_items))
    groups = rng.integers(-1, 3, num_items)
    wanted = rng.integers(-1, 4, 5)
    common = ranking.by_order(order, targets, exclude)
    grouped = ranking.by_group_then_order(order, groups, wanted, targets, exclude)
    for user, target in enumerate(targets):
        kept = [row for row in order.tolist() if row not in exclude[user]]
        assert kept.index(target) == common[user]
        if wanted[user] >= 0:
            kept = sorted(kept, key=lambda row: groups[row] != wanted[user])
        assert kept.index(target) == grouped[user]


def _rank(how: str, num_items: int, targets: list[int], exclude: Excluded) -> None:
    """Rank `num_items` items for users with these targets, by one of the three functions."""
    order, asked = np.arange(num_items), np.array(targets, np.int64)
    if how == "vectors":
        ranking.by_vectors(np.ones((len(asked), 1), np.float32), np.ones((num_items, 1), np.float32), asked, exclude)
    elif how == "order":
        ranking.by_order(order, asked, exclude)
    else:
        ranking.by_group_then_order(order, order % 2, np.zeros(len(asked), np.int64), asked, exclude)


@pytest.mark.parametrize("how", ["vectors", "order", "group"])
def test_a_sample_of_the_items_is_not_ranked(how: str) -> None:
    nothing = [np.empty(0, np.int64)]
    _rank(how, 1_000, [5], _excluded(1_000, nothing))
    with pytest.raises(ValueError, match=r"100 items are to be ranked, but the catalogue has 1000: .* rank every item"):
        _rank(how, 100, [5], _excluded(1_000, nothing))
    with pytest.raises(ValueError, match="target 100 is no row of the 100 items"):
        _rank(how, 100, [100], _excluded(100, nothing))
    with pytest.raises(ValueError, match=r"target 7 of user 1 is excluded .*: leave the user out"):
        _rank(how, 100, [5, 7], _excluded(100, [*nothing, np.array([7])]))


def test_an_order_has_every_item() -> None:
    with pytest.raises(ValueError, match="item 2 is not in the order"):
        ranking.by_order(np.array([0, 1, 1]), np.array([0]), _excluded(3, [np.empty(0, np.int64)]))


def _histories(root: Path) -> Histories:
    make(root, num_users=60)
    return histories.load(root)


def test_users_whose_target_is_no_candidate_are_left_out_and_counted(tmp_path: Path) -> None:
    h = _histories(tmp_path)
    last = h.offsets[1:] - 1
    repeated = h.items.copy()
    repeated[last[:7]] = h.items[h.offsets[:7]]  # the last event repeats the first
    h = Histories(**{name: getattr(h, name) for name in h.__slots__} | {"items": repeated})
    created = np.full(NUM_ITEMS, -1)
    late = next(
        int(h.items[e]) for s, e in zip(h.offsets[7:], last[7:], strict=False) if h.items[e] not in h.items[s:e]
    )
    created[late] = h.at[last].max() + 1
    found = last_events(h, created, history=4, exclude_seen=True, max_users=None, seed=0)
    again = [h.items[end] in h.items[start:end] for start, end in zip(h.offsets[:60], last, strict=True)]
    new = [not seen and h.items[end] == late for seen, end in zip(again, last, strict=True)]
    assert found.counts["left_out_target_seen"] == sum(again) >= 7
    assert found.counts["left_out_target_not_launched"] == sum(new) >= 1
    assert found.counts["tested"] == len(found) == 60 - sum(again) - sum(new)
    for user, target, at, state, exclude in zip(
        found.users, found.targets, found.at, found.states, found.exclude, strict=True
    ):
        before = slice(h.offsets[user], h.offsets[user + 1] - 1)
        assert target == h.items[before.stop]
        assert at == h.at[before.stop]
        assert state.items.tolist() == h.items[before][-4:].tolist()
        assert exclude.tolist() == sorted({*h.items[before].tolist(), late})
        assert target not in exclude
    everyone = last_events(h, created, history=4, exclude_seen=False, max_users=None, seed=0)
    assert everyone.counts["left_out_target_seen"] == 0
    assert everyone.exclude[0].tolist() == [late]


def test_users_whose_last_known_event_is_of_the_targets_moment_are_a_slice(tmp_path: Path) -> None:
    h = _histories(tmp_path)
    at, last = h.at.copy(), h.offsets[1:] - 1
    at[last[10:17]] = at[last[10:17] - 1]
    h = Histories(**{name: getattr(h, name) for name in h.__slots__} | {"at": at})
    cases = last_events(h, np.full(NUM_ITEMS, -1), history=4, exclude_seen=False, max_users=None, seed=0)
    found = slices.of(cases, np.ones(NUM_ITEMS, np.int64), {})
    assert found["same_moment"].tolist() == list(range(10, 17))
    assert sorted([*found["same_moment"], *found["earlier"]]) == found["all"].tolist()
    assert cases.states[10].items[-1] == h.items[last[10] - 1]  # the file's order decides, every time


def test_the_draw_of_users_is_seeded_and_a_part_keeps_its_own(tmp_path: Path) -> None:
    h = _histories(tmp_path)
    created = np.full(NUM_ITEMS, int((START + timedelta(days=3)).timestamp() * 1e6))
    created[:50] = -1
    drawn = [
        last_events(h, created, history=9, exclude_seen=True, max_users=12, seed=seed).users.tolist()
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 12
    whole = last_events(h, created, history=9, exclude_seen=True, max_users=None, seed=0)
    part = whole.part(np.array([3, 5]))
    assert part.users.tolist() == whole.users[[3, 5]].tolist()
    assert [rows.tolist() for rows in part.exclude] == [whole.exclude[3].tolist(), whole.exclude[5].tolist()]
    hidden = part.without_histories()
    assert all(state.cold for state in hidden.states)
    assert [state.profile.tolist() for state in hidden.states] == [state.profile.tolist() for state in part.states]


def test_histories_and_popularity_cut_the_users(tmp_path: Path) -> None:
    h = _histories(tmp_path)
    cases = last_events(h, np.full(NUM_ITEMS, -1), history=20, exclude_seen=False, max_users=None, seed=0)
    counts = np.bincount(h.items, minlength=NUM_ITEMS) * (np.arange(NUM_ITEMS) % 7 > 0)
    found = slices.of(cases, counts, {})
    length = [len(state.items) for state in cases.states]
    assert found["history:3-5"].tolist() == [u for u, n in enumerate(length) if 3 <= n <= 5]
    assert found["history:6-10"].tolist() == [u for u, n in enumerate(length) if 6 <= n <= 10]
    parts = [found[f"popularity:{n}"] for n in range(1, 5)]
    assert sorted(np.concatenate([*parts, found["cold_items"]])) == found["all"].tolist()
    highest = [counts[cases.targets[part]].max() for part in parts if len(part)]
    assert highest == sorted(set(highest))
    bounds = slices.quartile_bounds(counts)
    assert all(counts[cases.targets[part]].max() <= bound for part, bound in zip(parts[:3], bounds, strict=True))


def test_each_quartile_has_about_a_quarter_of_the_events() -> None:
    counts = np.arange(200)
    bounds = slices.quartile_bounds(counts)
    edges = np.searchsorted(bounds, counts, side="left")
    assert np.bincount(edges, counts) / counts.sum() == pytest.approx([0.25] * 4, abs=0.01)
    assert slices.quartile_bounds(np.zeros(5, np.int64)) == [0, 0, 0]


def test_shuffled_targets_are_the_same_targets_and_all_candidates(tmp_path: Path) -> None:
    h = _histories(tmp_path)
    cases = last_events(h, np.full(NUM_ITEMS, -1), history=20, exclude_seen=True, max_users=None, seed=0)
    dealt, kept = controls.shuffled(cases, 1)
    assert len(kept) == len(cases), "everybody finds a partner"
    assert sorted(dealt.targets) == sorted(cases.targets)
    assert (dealt.targets != cases.targets).mean() > 0.8
    assert all(target not in rows for target, rows in zip(dealt.targets, dealt.exclude, strict=True))
    assert controls.shuffled(cases, 1)[0].targets.tolist() == dealt.targets.tolist()


def test_who_can_exchange_with_nobody_is_left_out(tmp_path: Path) -> None:
    h = _histories(tmp_path)
    cases = last_events(h, np.full(NUM_ITEMS, -1), history=20, exclude_seen=False, max_users=None, seed=0)
    own = [np.setdiff1d(np.arange(NUM_ITEMS), [target]) for target in cases.targets]
    only = replace(cases.part(np.arange(3)), exclude=_excluded(NUM_ITEMS, own[:3]), targets=np.array([0, 10, 20]))
    dealt, kept = controls.shuffled(only, 2)
    assert len(kept) < 3
    assert len(dealt) == len(kept)


def test_popular_lists_are_the_order_without_the_excluded() -> None:
    order = np.array([3, 1, 4, 0, 2])
    exclude = _excluded(5, [np.array([1, 3]), np.arange(4)])
    assert [rows.tolist() for rows in controls.popular_lists(order, exclude, 2)] == [[4, 0], [4]]


def test_vectors_that_are_no_numbers_have_no_rank() -> None:
    users, items = np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32)
    exclude = Excluded(np.full(3, -1), np.zeros(2, np.int64), [np.empty(0, np.int64)] * 2)
    targets = np.array([0, 1])
    for broken in (users, items):
        spoilt = broken.copy()
        spoilt[1] = np.nan
        given = (spoilt, items) if broken is users else (users, spoilt)
        with pytest.raises(ValueError, match="vector of user 1 or of target 1 is not finite"):
            ranking.by_vectors(*given, targets, exclude)
