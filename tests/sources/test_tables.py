"""What the three tables propose together, and what is kept on disk."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rec.sources import cooccurrence, neighbours, segments, tables
from rec.sources.neighbours import Neighbours, strongest, summed
from rec.sources.tables import LAST_ITEMS, MOST, Sources
from rec.state import UserState, cold_state
from tests.sources.world import histories

ITEMS = 20


def sources() -> Sources:
    """Items near their numbers' neighbours; users who have 0 also have 7, those who have 2 also have 8."""
    angle = np.arange(ITEMS) / ITEMS
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    h = histories([[0, 7]] * 4 + [[2, 8]] * 2 + [[1, 6, 3, 4]], ITEMS)
    return Sources(neighbours.nearest(vectors, 3), cooccurrence.build(h, 3), segments.build(h))


def state(items: list[int]) -> UserState:
    """A user with these events, oldest first."""
    count = len(items)
    return UserState(np.array(items, np.int64), np.ones(count, np.int64), np.ones(count, np.float32), "", np.empty(0))


def test_neighbours_of_the_last_items_are_proposed_and_nothing_popular() -> None:
    found = sources().propose(state([0]))
    assert found.item.tolist() == [1, 2, 3]
    assert found.cooccurrence.tolist() == [7]
    assert 0 < found.cooccurrence_scores[0] < 1
    assert found.popular.tolist() == []


def test_only_the_last_distinct_items_count() -> None:
    last = [*range(19, 19 - LAST_ITEMS, -1), 19, 19]
    made = sources()
    assert made.propose(state([2, *last])).cooccurrence.tolist() == []
    assert made.propose(state([2, *last[1:-3], 19])).cooccurrence.tolist() == [8]


def test_each_source_proposes_its_best_and_not_more_than_most() -> None:
    many = 40 * LAST_ITEMS
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(many)[:30] for _ in range(many)]).astype(np.int32)
    table = Neighbours(rows, np.sort(rng.random(rows.shape).astype(np.float32))[:, ::-1].copy())
    last = list(range(LAST_ITEMS))
    found = Sources(table, table, sources().segments).propose(state(last))
    for proposed, combine in ((found.item, strongest), (found.cooccurrence, summed)):
        every = table.of(np.array(last), combine)[0]
        assert len(every) > MOST
        assert proposed.tolist() == every[:MOST].tolist()
    assert len(found.cooccurrence_scores) == MOST


def test_a_cold_user_gets_popular_items_only() -> None:
    found = sources().propose(cold_state(0))
    assert found.popular.tolist()[:3] == [0, 7, 2]
    assert len(found.item) == len(found.cooccurrence) == 0


def test_saved_tables_are_the_same_bytes_and_propose_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources().save(tmp_path / name)
    assert (tmp_path / "one" / tables.FILE).read_bytes() == (tmp_path / "two" / tables.FILE).read_bytes()
    assert load_file(tmp_path / "one" / tables.FILE)["item_rows"].dtype == np.int32
    one, two = sources().propose(state([1, 3])), tables.load(tmp_path / "one").propose(state([1, 3]))
    assert one.item.tolist() == two.item.tolist()
    assert one.cooccurrence_scores.tolist() == two.cooccurrence_scores.tolist()
