"""Retrieval as served equals retrieval as trained on: one merge, with filters in Postgres or as exclusions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec import assemble
from rec.bundle import Bundle
from rec.index import load, promote
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from rec.models.text_encoder import TextEncoder
from rec.recommend.encode import UserEncoder
from rec.recommend.retrieve import POPULAR_FIRST, Retriever
from rec.retrieval import candidates, search
from rec.sources import tables
from rec.sources.tables import Sources
from rec.state import UserState, cold_state
from tests.bundle import tiny


@dataclass(frozen=True)
class Shop:
    """A published bundle whose every search is exact, at full precision: what differs is not the index."""

    bundle: Bundle
    encoder: UserEncoder
    retriever: Retriever
    sources: Sources


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Shop]:
    recipe = tiny.config(tmp_path_factory.mktemp("retrieve"), name="exact", kind="vector")
    index = recipe.index.model_copy(update={"exact_rows": tiny.ITEMS})
    made = assemble.create(tiny.make(recipe.model_copy(update={"index": index})))
    load.vectors(database_url, made, index)
    promote.promote(database_url, made, recipe.root, force=False)
    connections = Connections(database_url, size=1)
    yield Shop(made, UserEncoder(made), Retriever(made, connections), tables.load(made.folder("sources")))
    connections.close()


def test_the_text_encoder_has_read_before_any_shopper_says_something(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are mapped from files until they are read: the first with words waited for that."""
    read: list[str] = []
    embed = TextEncoder.embed

    def noted(self: TextEncoder, texts: Sequence[str]) -> np.ndarray:
        read.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(TextEncoder, "embed", noted)
    encoder = UserEncoder(shop.bundle)
    assert read
    read.clear()
    encoder.read("a coat for rain")
    assert read == ["a coat for rain"]


def test_a_context_that_was_read_before_waits_for_nobody_s_reading(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, over = Event(), Event()
    embed = TextEncoder.embed

    def slow(self: TextEncoder, texts: Sequence[str]) -> np.ndarray:
        if "a stranger's wish" in texts:
            reading.set()
            assert over.wait(60)
        return embed(self, texts)

    encoder = UserEncoder(shop.bundle)
    encoder.read("a coat for rain")
    monkeypatch.setattr(TextEncoder, "embed", slow)
    with ThreadPoolExecutor(2) as callers:
        stranger = callers.submit(encoder.read, "a stranger's wish")
        try:
            assert reading.wait(60)
            state = replace(cold_state(2), context="a coat for rain")
            assert len(callers.submit(encoder.encode, [state]).result(timeout=30)) == 1
            assert not stranger.done()
        finally:
            over.set()
    stranger.result()


def test_of_what_is_proposed_only_what_the_walk_has_not_found_is_looked_up_and_at_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    passing = VectorIndex.passing

    def noted(self: VectorIndex, product_ids: Sequence[str], filters: Filters) -> set[str]:
        asked.append(list(product_ids))
        return passing(self, product_ids, filters)

    monkeypatch.setattr(VectorIndex, "passing", noted)
    banned, k, none = np.arange(4), 3, np.empty(0, np.int64)
    state = UserState(none, none, np.empty(0, np.float32), "", np.array([165.0, 1985.0], np.float32))
    vector = shop.encoder.encode([state])[0].vector
    found = shop.retriever.retrieve(vector, k, state=state, exclude=banned, filters=Filters())
    assert len(found.candidates.rows) == k
    ids = shop.bundle.products()["product_id"].to_pylist()
    nearest, _ = search(vector[None], shop.bundle.item_vectors(), k, [banned])
    proposed = shop.sources.propose(state)
    (once,) = asked
    assert once
    assert not {ids[row] for row in (*banned, *nearest[0])} & set(once)
    assert len(proposed.popular) > POPULAR_FIRST * k, "of which the first are enough"
    assert set(once) <= {ids[row] for row in replace(proposed, popular=proposed.popular[: POPULAR_FIRST * k]).rows}


FILTERS = (
    Filters(),
    Filters(categories=("coat",)),
    Filters(categories=("coat", "dress"), price_max=60.0),
    Filters(price_min=150.0),
)


@settings(max_examples=40)
@given(
    history=st.lists(st.integers(0, tiny.ITEMS - 1), max_size=8),
    height=st.just(np.nan) | st.floats(150, 180),
    banned=st.sets(st.integers(0, tiny.ITEMS - 1), max_size=30),
    filters=st.sampled_from(FILTERS),
    k=st.sampled_from([5, 20, 60]),
)
def test_serving_merges_what_training_and_evaluation_merge(
    shop: Shop,
    history: list[int],
    height: float,
    banned: set[int],
    filters: Filters,
    k: int,
) -> None:
    """Filters are exclusions to exact search: sources, scores and order of the candidates are those of offline code."""
    bundle = shop.bundle
    items, count = np.array(history, np.int64), len(history)
    profile = np.array([height, 1985.0], np.float32)
    state = UserState(items, np.full(count, 3), np.ones(count, np.float32), "", profile)
    vector = shop.encoder.encode([state])[0].vector
    served = shop.retriever.retrieve(
        vector, k, state=state, exclude=np.array(sorted(banned), np.int64), filters=filters
    )
    table = bundle.products().to_pylist()
    gone = [
        item
        for item, product in enumerate(table)
        if not product["available"]
        or (filters.categories and not set(filters.categories) & set(product["category"]))
        or (filters.price_min is not None and product["price"] < filters.price_min)
        or (filters.price_max is not None and product["price"] > filters.price_max)
    ]
    exclude = np.union1d(sorted(banned), gone).astype(np.int64)
    vectors, quotas = bundle.item_vectors(), bundle.config.ranker.quotas
    ann, _ = search(vector[None], vectors, k, [exclude])
    proposed = [shop.sources.propose(state)]
    (offline,) = candidates(vector[None], vectors, ann, proposed, k=k, quotas=quotas, exclude=[exclude])
    assert served.candidates.rows.tolist() == offline.rows.tolist()
    assert served.candidates.sources.tolist() == offline.sources.tolist()
    np.testing.assert_allclose(served.candidates.scores, offline.scores, atol=1e-6)
    np.testing.assert_array_equal(served.candidates.cooccurrence, offline.cooccurrence)
    assert len(offline.rows) == min(k, tiny.ITEMS - len(exclude))
