"""What a server says of its recall is true, and taking it costs requests nothing."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from rec import bundle, postgres
from rec.bundle import Bundle
from rec.config import Config
from rec.errors import DatabaseError
from rec.index.connections import Connections
from rec.index.recall import Asked
from rec.index.search import Filters, Found, VectorIndex
from rec.recommend.retrieve import Retriever
from rec.state import UserState
from serve import sampler
from serve.sampler import RecallSampler

NONE = np.empty(0, np.int64)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison after the other."""
    monkeypatch.setattr(sampler, "REST", 0)


@pytest.fixture
def made(published: Config) -> Bundle:
    """The active bundle."""
    (name,) = bundle.names(published.store)
    return bundle.read(published.store, name)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited a minute"
        time.sleep(0.01)


def test_answers_of_the_index_are_compared_by_class_of_filter(
    made: Bundle, published: Config, connections: Connections
) -> None:
    told: list[tuple[str, float]] = []
    sampled = RecallSampler(lambda: Connections(postgres.url(published.store), size=1), lambda *said: told.append(said))
    retriever = Retriever(made, connections, sampled.at(1.0))
    state = UserState(NONE, NONE, np.empty(0, np.float32), "", np.full(2, np.nan, np.float32))
    vector = made.item_vectors()[5]
    for filters, exclude in (
        (Filters(categories=("dress",)), NONE),  # so few that exact search answers
        (Filters(), NONE),
        (Filters(categories=("coat", "dress")), NONE),
        (Filters(price_max=100.0), NONE),
        (Filters(), np.arange(30)),
    ):
        retriever.retrieve(vector, 20, state=state, exclude=exclude, filters=filters)
    until(lambda: len(told) == 4)
    assert [name for name, _ in told] == ["stock", "category", "price", "seen"]
    assert all(value > 0.95 for _, value in told)
    assert RecallSampler(lambda: connections, lambda *_: None).at(0) is None


def test_what_is_missing_is_told_and_what_fails_is_not_the_end(made: Bundle, connections: Connections) -> None:
    told: list[tuple[str, float]] = []
    opened = iter([DatabaseError("it is away"), KeyError("unforeseen"), connections])

    def connect() -> Connections:
        found = next(opened)
        if isinstance(found, Exception):
            raise found
        return found

    index = VectorIndex(connections, made.id, made.config.index.model_copy(update={"exact_rows": 0}))
    vector = made.item_vectors()[7]
    whole = index.search(vector, 20, exclude=NONE, filters=Filters())
    half = Found(rows=whole.rows[::2], scores=whole.scores[::2], path="hnsw", underfilled=False)
    heard = RecallSampler(connect, lambda *said: told.append(said)).at(1.0)
    assert heard is not None
    for _ in range(3):
        heard(index, Asked(vector, 20, NONE, Filters()), half)
    until(lambda: len(told) > 0)
    ((name, value),) = told
    assert name == "stock"
    assert value == pytest.approx(0.5, abs=0.05)


def test_requests_never_wait_for_comparisons(made: Bundle, connections: Connections) -> None:
    told: list[str] = []
    held = threading.Event()

    def connect() -> Connections:
        held.wait(60)
        return connections

    index = VectorIndex(connections, made.id, made.config.index.model_copy(update={"exact_rows": 0}))
    vector = made.item_vectors()[7]
    found = index.search(vector, 20, exclude=NONE, filters=Filters())
    heard = RecallSampler(connect, lambda name, _: told.append(name)).at(1.0)
    assert heard is not None
    for _ in range(5 * sampler.WAITING):
        heard(index, Asked(vector, 20, NONE, Filters()), found)
    assert told == []
    held.set()
    until(lambda: len(told) >= sampler.WAITING)
    time.sleep(0.1)
    assert len(told) <= sampler.WAITING + 1
