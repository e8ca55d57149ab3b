"""All stages in the ingress's process: the chain's answers, one thread, and what it does without a stage."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter

from rec import bundle
from rec.config import Config
from rec.errors import DatabaseError
from rec.index.connections import Connections
from rec.recommend.chain import Chain
from rec.recommend.request import Choice, Request
from serve import api
from serve.answering import Answering, BackedFront, written
from serve.asking import Together
from serve.stages import Ranker, Retriever, UserTower

REQUESTS = [
    Request(),
    Request(user_id="u04", k=25),
    Request(history=(Choice("P0001"), Choice("P0002", "cart")), context="a red dress", k=40),
    Request(history=(Choice("P0004", size="12", fit="large"),)),
]


@pytest.fixture(scope="module")
def front(published: Config, connections: Connections) -> BackedFront:
    (name,) = bundle.names(published.store)
    return BackedFront(bundle.read(published.store, name), connections)


@pytest.fixture(scope="module")
def together(published: Config) -> Together:
    return Together(published.store)


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_answer_is_the_chain_s_and_has_the_declared_shape(
    front: BackedFront, together: Together, chain: Chain, request_: Request
) -> None:
    answer = asyncio.run(Answering(together).recommend(front, request_))
    local = chain.recommend(request_)
    assert [item["product_id"] for item in answer["items"]] == [item["product_id"] for item in local.items]
    assert [item["score"] for item in answer["items"]] == [item["score"] for item in local.items]
    assert answer["degraded"] == []
    sent = bytes(written(answer).body)
    adapter = TypeAdapter(api.Recommendations)
    assert adapter.dump_python(adapter.validate_json(sent), mode="json") == TypeAdapter(Any).validate_json(sent)


def test_an_answer_stays_in_one_thread_that_is_not_the_loop_s(
    front: BackedFront, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noting(work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **named: Any) -> Any:
            threads.append(threading.get_ident())
            return work(*given, **named)

        noted.__name__ = work.__name__
        return noted

    for stage, name in ((UserTower, "encode"), (Retriever, "retrieve"), (Ranker, "rank")):
        monkeypatch.setattr(stage, name, noting(getattr(stage, name)))
    monkeypatch.setattr(front, "known", noting(front.known))
    asyncio.run(Answering(together).recommend(front, Request(user_id="u04")))
    assert len(threads) == 4
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1


@pytest.mark.parametrize(
    ("stage", "method", "code"),
    [
        (UserTower, "encode", "user_tower_unavailable"),
        (Retriever, "retrieve", "ann_unavailable"),
        (Ranker, "rank", "ranker_unavailable"),
    ],
)
def test_a_stage_that_fails_is_done_without(
    front: BackedFront,
    together: Together,
    monkeypatch: pytest.MonkeyPatch,
    stage: type,
    method: str,
    code: str,
) -> None:
    def fail(*_: object) -> None:
        raise DatabaseError("no connection to Postgres")

    fail.__name__ = method
    monkeypatch.setattr(stage, method, fail)
    answer = asyncio.run(Answering(together).recommend(front, Request(user_id="u04", k=7)))
    assert answer["degraded"] == [code]
    assert len(answer["items"]) == 7
    with pytest.raises(Exception, match="no connection to Postgres"):
        asyncio.run(Answering(together).recommend(front, Request(k=1), whole=True))


def test_what_would_wait_for_the_event_loop_is_an_error(together: Together) -> None:
    with pytest.raises(RuntimeError, match="waits for an event loop"):
        asyncio.run(together.answer(asyncio.sleep(0)))
