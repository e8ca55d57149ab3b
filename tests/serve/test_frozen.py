"""A Postgres that says nothing, neither yes nor no: everybody is answered in time, by as many threads as before."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rec import bundle, postgres
from rec.config import Config
from rec.errors import DatabaseError
from rec.index.connections import Connections, within
from rec.recommend.request import Request
from serve import searching
from serve.answering import Answering
from serve.asking import Together, timely
from serve.degrade import Unavailable
from serve.exposures import ExposureLog
from serve.fallible import DEADLINE_S, BackedFront
from serve.searching import Searching
from tests.serve.conftest import frozen, published_in

AT_ONCE = 32
"""As many as a replica takes."""
SLACK_S = 1.0


@pytest.fixture(scope="module")
def own(new_store: Callable[[], Path]) -> Config:
    return published_in(new_store())


@pytest.fixture(scope="module")
def opened(own: Config) -> Iterator[Connections]:
    pool = Connections(postgres.url(own.store), size=4)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def front(own: Config, opened: Connections) -> BackedFront:
    (name,) = bundle.names(own.store)
    return BackedFront(bundle.read(own.store, name), opened)


@pytest.fixture(scope="module")
def answering(own: Config) -> Iterator[Answering]:
    log = ExposureLog(lambda: Connections(postgres.url(own.store), size=1), lambda *_: None)
    yield Answering(Together(own.store), log)
    log.close()


async def timed(answering: Answering, front: BackedFront) -> list[tuple[dict[str, Any], float]]:
    """Answers to AT_ONCE shoppers, each with the seconds it took."""

    async def one(number: int) -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        answer = await answering.recommend(front, Request(user_id=f"u0{number % 10}", k=5))
        return answer, time.monotonic() - began

    return await asyncio.gather(*(one(number) for number in range(AT_ONCE)))


@pytest.mark.slow
@pytest.mark.parametrize("postmaster", [True, False], ids=["all of it", "its connections"])
def test_everybody_is_answered_in_time_and_wholly_as_soon_as_it_goes_on(
    own: Config, front: BackedFront, answering: Answering, postmaster: bool
) -> None:
    def degraded(found: list[tuple[dict[str, Any], float]]) -> set[str]:
        return {code for answer, _ in found for code in answer["degraded"]}

    assert degraded(asyncio.run(timed(answering, front))) == set()
    with frozen(own.store, postmaster=postmaster):
        first, then = asyncio.run(timed(answering, front)), asyncio.run(timed(answering, front))
        for found in (first, then):
            assert max(seconds for _, seconds in found) < DEADLINE_S + SLACK_S
            assert {len(answer["items"]) for answer, _ in found} == {5}
        assert degraded(first) >= {"history_unavailable", "ann_unavailable"}
        assert degraded(then) == (
            {"history_unavailable", "ann_unavailable", "prices_unavailable"} if postmaster else set()
        ), "new connections are as good as others"
    deadline = time.monotonic() + 60
    while degraded(asyncio.run(timed(answering, front))):
        assert time.monotonic() < deadline, "it does not recover"


@pytest.mark.slow
def test_what_only_the_database_knows_is_refused_in_time(own: Config, front: BackedFront) -> None:
    async def users() -> list[float]:
        async def one() -> float:
            began = time.monotonic()
            with pytest.raises(DatabaseError):
                await timely(None, 2.0, front.catalogue.stored, "u04")
            return time.monotonic() - began

        return await asyncio.gather(*(one() for _ in range(AT_ONCE)))

    with frozen(own.store, postmaster=True):
        assert max(asyncio.run(users())) < 2.0 + SLACK_S
    deadline = time.monotonic() + 60
    while True:
        try:
            stored = front.catalogue.stored("u04")
            break
        except DatabaseError:
            assert time.monotonic() < deadline, "it does not recover"
    assert stored is not None


def test_a_flood_of_searches_leaves_recommendations_their_connections(
    front: BackedFront, opened: Connections, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def slow(query: str, limit: int) -> list[str]:
        with opened.use():
            assert done.wait(30)
        return ["P0003"]

    monkeypatch.setattr(front.catalogue, "find", slow)
    monkeypatch.setattr(searching, "SEARCH_S", 30.0)
    searches, refused, found = Searching(), list[Unavailable](), list[dict[str, Any]]()

    async def search() -> None:
        try:
            found.extend(await searches.find(front, "dress", 3, evidence=False))
        except Unavailable as error:
            refused.append(error)

    async def flood() -> list[tuple[dict[str, Any], float]]:
        flooding = [asyncio.create_task(search()) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.05)
        assert len(refused) == AT_ONCE - searching.MOST, "at once"
        try:
            return await timed(answering, front)
        finally:
            done.set()
            await asyncio.gather(*flooding)

    answers = asyncio.run(flood())
    assert [answer["degraded"] for answer, _ in answers] == [[]] * AT_ONCE
    assert [item["product_id"] for item in found] == ["P0003"] * searching.MOST
    asyncio.run(search())
    assert len(found) == searching.MOST + 1, "whoever comes later"


def test_no_time_is_left_for_what_comes_after_the_deadline(
    front: BackedFront, answering: Answering, opened: Connections
) -> None:
    late = asyncio.run(answering.recommend(front, Request(user_id="u04", k=5), patience=0.0))
    assert late["degraded"] == [
        "history_unavailable",
        "user_tower_unavailable",
        "ann_unavailable",
        "prices_unavailable",
    ]
    assert len(late["items"]) == 5
    with pytest.raises(DatabaseError, match="no time"), within(0.0), within(9.0), opened.use():
        pass
    assert asyncio.run(answering.recommend(front, Request(user_id="u04", k=5)))["degraded"] == []
