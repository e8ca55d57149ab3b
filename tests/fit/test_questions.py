"""Questions are point-in-time, and what they ask of is no part of what they know."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec import histories, worn
from rec.histories import Histories
from rec.models.size_table import SizeTable
from rec.schema import INTERACTIONS
from rec.train import questions
from rec.worn import Worn
from tests.fit import world


def _events(days: list[list[int]]) -> Histories:
    """One user per list, one event per day in it; items are unlike."""
    lengths = [len(each) for each in days]
    count = sum(lengths)
    return Histories(
        user_ids=[f"u{user}" for user in range(len(days))],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.arange(count),
        events=np.ones(count, np.int64),
        at=np.array([day for each in days for day in sorted(each)], np.int64),
        contexts=[""] * count,
        profiles=np.empty((len(days), 0), np.float32),
        profile_names=[],
        num_items=count,
        unknown=0,
    )


def _worn(told: list[tuple[int, int]]) -> Worn:
    """(size, fit) of each event; size 0 is none."""
    return Worn(
        ["" if size == 0 else str(size) for size, _ in told],
        np.array([np.nan if size == 0 else size for size, _ in told], np.float32),
        np.array([fit for _, fit in told], np.int64),
    )


def _asked(h: Histories, of: Worn, history: int = 3) -> questions.Questions:
    table = SizeTable([str(size) for size in range(1, 7)], [str(size) for size in range(1, 7)], [], [0.0], [1.0])
    return questions.build(h, of, table, np.zeros(h.num_items, np.int64), history)


days = st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=4).filter(any)


@given(days, st.data())
def test_the_past_is_the_last_sized_events_of_earlier_moments(each: list[list[int]], data: st.DataObject) -> None:
    h = _events(each)
    told = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=len(h.at), max_size=len(h.at)))
    of = _worn(told)
    batch = _asked(h, of).batch(np.arange(len(h.at)))
    for event in range(len(h.at)):
        user = int(np.searchsorted(h.offsets, event, side="right")) - 1
        mine = [e for e in range(h.offsets[user], h.offsets[user + 1]) if h.at[e] < h.at[event] and of.sizes[e]]
        found = batch.past_items[event][batch.past_known[event]].tolist()
        assert found == mine[-3:][::-1]
        assert batch.past_fits[event][batch.past_known[event]].tolist() == of.fits[mine[-3:][::-1]].tolist()
    other = data.draw(st.integers(0, len(h.at) - 1))
    changed = list(told)
    changed[other] = (1 + told[other][0] % 6, (told[other][1] + 1) % 4)
    again = _asked(h, _worn(changed)).batch(np.array([other]))
    known = batch.past_known[other]
    assert again.past_known[0].tolist() == known.tolist()
    for name in ("past_items", "past_name", "past_pair", "past_z", "past_fits"):
        before, after = getattr(batch, name)[other], getattr(again, name)[0]
        assert before[known].tolist() == after[known].tolist(), "an event's own answer is in its past"


@given(days, st.data())
def test_a_user_s_last_told_event_tests_and_the_one_before_validates(
    each: list[list[int]], data: st.DataObject
) -> None:
    h = _events(each)
    told = np.array(data.draw(st.lists(st.booleans(), min_size=len(h.at), max_size=len(h.at))), bool)
    parts = questions.split(h, told)
    assert sorted([*parts.train, *parts.validation, *parts.test]) == np.flatnonzero(told).tolist()
    for user in range(len(each)):
        mine = [e for e in range(h.offsets[user], h.offsets[user + 1]) if told[e]]
        several = len(mine) >= 2
        assert [e for e in parts.test if e in mine] == (mine[-1:] if several else [])
        assert [e for e in parts.validation if e in mine] == (mine[-2:-1] if several else [])


def test_no_size_reaches_the_histories_of_retrieval_and_ranking(tmp_path: Path) -> None:
    """The same events with and without sizes and feedback: what every other stage reads is equal."""
    world.make(tmp_path / "told", 40)
    world.make(tmp_path / "silent", 40)
    rows = [
        {name: value for name, value in row.items() if name not in ("size", "size_number", "fit")}
        for row in _rows(tmp_path / "silent")
    ]
    world.write(tmp_path / "silent", INTERACTIONS, rows)
    told, silent = histories.load(tmp_path / "told"), histories.load(tmp_path / "silent")
    for name in Histories.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(told, name), getattr(silent, name), err_msg=name)
    assert worn.load(tmp_path / "told").told.all()
    assert not worn.load(tmp_path / "silent").told.any()


def _rows(root: Path) -> list[dict[str, object]]:
    from rec import dataset

    return dataset.read(root / "events", INTERACTIONS).to_pylist()


@pytest.mark.parametrize("count", [1, 4])
def test_a_rare_size_has_no_name_but_its_number(count: int) -> None:
    kinds = np.array([1] * 6 + [2] * count)
    written = ["8"] * 6 + ["M / L"] * count
    numbers = np.array([8.0] * 6 + [np.nan] * count, np.float32)
    table = SizeTable.build(kinds, written, numbers, 3, ["8"])
    found = table.encode(np.array([1, 2, 1]), [" 8", "m / l", "10"], np.array([8, np.nan, 10], np.float32))
    assert found.name.tolist() == [1, 0, 0]
    assert found.pair.tolist() == [1, 0, 0]
    assert found.z.tolist() == [0, 0, 2]
    again = SizeTable.of_json(table.to_json())
    assert again.to_json() == table.to_json()


def test_an_item_s_events_of_one_moment_are_not_before_each_other() -> None:
    h = replace(_events([[0, 1, 1, 2], [2]]))
    assert worn.earlier(h, np.arange(5)).tolist() == [0, 1, 1, 3, 4]
