"""Without Postgres: the candidates are those of exact search, by what the bundle says of stock, price and category."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec.index.connections import Connections
from rec.index.search import Filters
from rec.recommend.chain import Chain
from rec.recommend.retrieve import Retriever
from rec.recommend.standby import Standby
from rec.sources import tables
from rec.sources.segments import Segments
from rec.state import UserState, cold_state
from tests.bundle import tiny
from tests.serve.test_retrieve import FILTERS

NO_ROWS = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def standby(chain: Chain) -> Standby:
    return Standby(chain.bundle, chain.vectors)


@pytest.fixture(scope="module")
def retriever(chain: Chain, connections: Connections) -> Retriever:
    return Retriever(chain.bundle, connections)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(0, tiny.ITEMS - 1),
    height=st.just(np.nan) | st.floats(150, 180),
    banned=st.sets(st.integers(0, tiny.ITEMS - 1), max_size=30),
    also=st.sets(st.integers(0, tiny.ITEMS - 1), max_size=3),
    filters=st.sampled_from(FILTERS),
    k=st.sampled_from([5, 20, 160]),
)
def test_cold_shoppers_get_what_postgres_would_find(
    standby: Standby,
    retriever: Retriever,
    chain: Chain,
    row: int,
    height: float,
    banned: set[int],
    also: set[int],
    filters: Filters,
    k: int,
) -> None:
    state = cold_state(2)
    state.profile[0] = height
    given_ = {
        "state": state,
        "exclude": np.array(sorted(banned), np.int64),
        "filters": filters,
        "also": np.array(sorted(also), np.int64),
    }
    for ours, theirs in (
        (standby.popular(k, **given_), retriever.popular(k, **given_)),
        (standby.retrieve(chain.vectors[row], k, **given_), retriever.retrieve(chain.vectors[row], k, **given_)),
    ):
        assert ours.underfilled == theirs.underfilled
        if k == 160:  # the index stores half precision, so the last ones of a shorter list may differ
            assert set(ours.candidates.rows.tolist()) == set(theirs.candidates.rows.tolist())
        np.testing.assert_allclose(np.sort(ours.candidates.scores), np.sort(theirs.candidates.scores), atol=2e-3)
        assert not set(ours.candidates.rows.tolist()) & banned
    popular = standby.popular(k, **given_).candidates
    assert popular.rows.tolist() == retriever.popular(k, **given_).candidates.rows.tolist()


def test_products_of_a_narrow_category_follow_where_none_is_popular(
    chain: Chain, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = tables.load_segments

    def few(folder: Path) -> Segments:
        found = load(folder)
        return replace(found, orders=found.orders[:, :1])

    monkeypatch.setattr(tables, "load_segments", few)
    state = cold_state(2)
    popular = tables.load_segments(chain.bundle.folder("sources")).popular(state.profile).tolist()
    category = next(each for each in ("coat", "dress") if each not in {tiny.category(row) for row in popular})
    for stage in (Standby(chain.bundle, chain.vectors), Retriever(chain.bundle, connections)):
        every = stage.popular(160, state=state, exclude=NO_ROWS, filters=Filters(categories=(category,)), also=NO_ROWS)
        rows = every.candidates.rows.tolist()
        assert every.underfilled
        assert len(rows) == len(set(rows)) > 5
        assert {tiny.category(row) for row in rows} == {category}
        first = stage.popular(
            5, state=state, exclude=np.array(rows[:1]), filters=Filters(categories=(category,)), also=NO_ROWS
        )
        assert first.candidates.rows.tolist() == rows[1:6]
        assert not first.underfilled
        assert not first.candidates.sources.any(), "nobody says that they are popular"
        without = stage.popular(10, state=state, exclude=NO_ROWS, filters=Filters(), also=NO_ROWS)
        assert without.candidates.rows.tolist()[: len(popular)] == [row for row in popular if row % 10 != 9]


def test_a_history_and_similar_products(standby: Standby, retriever: Retriever, chain: Chain) -> None:
    state = UserState(np.array([3]), np.array([3]), np.ones(1, np.float32), "", np.full(2, np.nan, np.float32))
    found = standby.retrieve(
        chain.vectors[3], 10, state=state, exclude=np.array([3]), filters=Filters(), also=np.array([12])
    )
    assert len(found.candidates.rows) in (10, 11)
    assert 12 in found.candidates.rows
    assert not (found.candidates.sources & ~1).any(), "nobody but the search found any"
    near, exact = retriever.similar(3, 8), standby.similar(3, 8, NO_ROWS)
    np.testing.assert_allclose(exact.candidates.scores, near.candidates.scores, atol=2e-3)
    assert 3 not in exact.candidates.rows
