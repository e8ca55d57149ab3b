"""Splits: what trains, what is a test, what is known of it; and that a leak into the training store is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec import artifact, dataset, histories
from rec.config import Config
from rec.errors import ArtifactError, ConfigError
from rec.evaluate import hidden, splits
from rec.evaluate.splits import Holdout
from rec.histories import Histories
from rec.models import user_tower
from rec.schema import vectors
from rec.train import user
from tests.item_tower import catalogue
from tests.train import test_copurchase as pairs
from tests.train.in_process import in_process

PRODUCTS = 24


def _at(h: Histories, moments: list[int]) -> Histories:
    return Histories(**{name: getattr(h, name) for name in h.__slots__} | {"at": np.array(moments, np.int64)})


def _shop(folder: Path) -> tuple[Config, Histories]:
    """A shop that went through embed, but for vectors at random."""
    tree = catalogue.shop(folder, PRODUCTS)
    contract = vectors(tree.item_tower.width)
    drawn = np.random.default_rng(0).standard_normal((PRODUCTS, tree.item_tower.width)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    rows = [{"product_id": f"p{i:04}", "vector": row.tolist(), "inputs": bytes(16)} for i, row in enumerate(drawn)]
    catalogue.put(tree, contract, rows)
    return tree, histories.load(tree.root)


def _day(h: Histories, day: int) -> int:
    """The moment of the events with this number within a user's, all of which the shop has on one day."""
    return int(np.unique(h.at)[day])


def test_one_moment_cuts_all_users() -> None:
    """User 0 chooses 1 again after the cut and then 3; user 1 nothing new; user 2 comes after it, user 3 never."""
    h = pairs.histories([[0, 1, 1, 3, 4], [2, 5, 5], [6, 7], [8]], 12)
    h = _at(h, [0, 10, 20, 30, 40, 5, 6, 50, 20, 21, 3])
    found = splits.temporal(h, 20)
    assert found.training.tolist() == [True, True, False, False, False, True, True, False, False, False, True]
    assert h.items[found.tests].tolist() == [3, 6]
    cases = splits.asked(h, found, np.full(12, -1), history=9, exclude_seen=True, max_users=None, seed=0)
    assert cases.users.tolist() == [0, 2]
    assert [state.items.tolist() for state in cases.states] == [[0, 1, 1], []]
    assert cases.exclude[0].tolist() == [0, 1]


users = st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 30)), max_size=7), min_size=1, max_size=6)


@given(users, st.integers(0, 31))
def test_a_temporal_split_equals_a_slow_loop(drawn: list[list[tuple[int, int]]], cut: int) -> None:
    events = [sorted(one, key=lambda event: event[1]) for one in drawn]
    h = _at(pairs.histories([[i for i, _ in one] for one in events], 12), [at for one in events for _, at in one])
    flat, tests = 0, []
    for one in events:
        new = [e for e, (item, at) in enumerate(one) if at >= cut and item not in [i for i, _ in one[:e]]]
        tests += [flat + e for e in new[:1]]
        flat += len(one)
    if not tests or not (h.at < cut).any():
        with pytest.raises(ConfigError, match=f"the cut at {cut} leaves no event .*: choose one between"):
            splits.temporal(h, cut)
    else:
        assert splits.temporal(h, cut).tests.tolist() == tests


def test_cold_users_have_no_training_event_and_nothing_is_known_of_them() -> None:
    h = pairs.histories([[u % 12, (u + 1) % 12, (u + 2) % 12] for u in range(20)] + [[]], 12)
    found = splits.cold_users(h, 0.25, 3)
    owner = np.repeat(np.arange(21), np.diff(h.offsets))
    assert len(found.cold_users) == 5
    assert set(owner[~found.training]) == set(found.cold_users.tolist())
    assert found.tests.tolist() == (h.offsets[found.cold_users + 1] - 1).tolist()
    assert splits.cold_users(h, 0.25, 3).cold_users.tolist() == found.cold_users.tolist()
    assert splits.cold_users(h, 0.25, 4).cold_users.tolist() != found.cold_users.tolist()
    cases = splits.asked(h, found, np.full(12, -1), history=9, exclude_seen=True, max_users=None, seed=0)
    assert all(state.cold for state in cases.states)
    assert [len(rows) for rows in cases.exclude] == [0] * 5
    with pytest.raises(ConfigError, match=r"a share of 1\.0 makes 20 of 20 users with events cold"):
        splits.cold_users(h, 1.0, 3)


def test_a_store_has_the_training_events_alone(tmp_path: Path) -> None:
    tree, h = _shop(tmp_path)
    for name, split in (("temporal", splits.temporal(h, _day(h, 2))), ("cold-users", splits.cold_users(h, 0.2, 1))):
        made = splits.write(tree, name, h, split)
        kept = histories.load(made.root)
        assert (kept.num_items, len(kept.items)) == (PRODUCTS, int(split.training.sum()))
        assert kept.at.tolist() == h.at[split.training].tolist()
        assert dataset.read_manifest(made.at("vectors"), vectors(tree.item_tower.width)).facts["rows"] == PRODUCTS
    learnt = tree.item_tower.behaviour.model_copy(update={"epochs": 1})
    for name, reads in (("stage", {"behaviour": learnt}), ("start", {"start": "choices"})):
        reader = tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update=reads)})
        made = splits.write(reader, f"own-vectors-{name}", h, splits.cold_users(h, 0.2, 1))
        assert artifact.peek(made.at("vectors")) is None, "those of the whole recipe have seen the tests"


def _one_more(split: Holdout, event: int) -> np.ndarray:
    return split.training | (np.arange(len(split.training)) == event)


def test_a_planted_leak_is_refused(tmp_path: Path) -> None:
    """One event too many in an otherwise clean store: a test, a later one, one of a cold user, each by its own rule."""
    tree, h = _shop(tmp_path)
    cut, cold = splits.temporal(h, _day(h, 2)), splits.cold_users(h, 0.2, 1)
    tests_alone = Holdout(cut.training, cut.tests, None, cut.cold_users)
    plants = [
        (
            tests_alone,
            int(cut.tests[0]),
            "1 events that are tests, such as that of user 'u0.*' on product 'p.*: remove",
        ),
        (cut, int(np.setdiff1d(np.flatnonzero(~cut.training), cut.tests)[0]), "1 events at or after the cut at"),
        (cold, int(h.offsets[cold.cold_users[0]]), "1 events of cold users"),
    ]
    for number, (split, event, message) in enumerate(plants):
        leaky = hidden.part(tree, f"leaky-{number}")
        hidden.write(tree, leaky, np.ones(PRODUCTS, bool), h, _one_more(split, event))
        with pytest.raises(ArtifactError, match=message):
            splits.check(leaky, h, split)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_the_user_tower_is_trained_in_such_a_store(tmp_path: Path) -> None:
    tree, h = _shop(tmp_path)
    train = tree.user_tower.train.model_copy(update={"epochs": 1, "batch_size": 32, "cpus_per_worker": 1})
    options = tree.user_tower.model_copy(update={"heads": 2, "layers": 1, "train": train})
    split = splits.temporal(h, _day(h, 3))
    made = splits.write(tree.model_copy(update={"user_tower": options}), "temporal", h, split)
    with in_process(user.loop):
        user.run(made)
    tower = user_tower.load(made.at(user_tower.KIND))
    assert len(tower.item_vectors) == PRODUCTS
    cases = splits.asked(h, split, np.full(PRODUCTS, -1), history=9, exclude_seen=True, max_users=None, seed=0)
    assert np.isfinite(tower.vectors(cases.states, None)).all()
