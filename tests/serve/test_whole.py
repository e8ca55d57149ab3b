"""All stages in the ingress's process: the chain's answers, one thread, and what it does without a stage."""

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest
from fastapi import Response
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import TypeAdapter

from rec import postgres
from rec.config import Config
from rec.errors import DatabaseError
from rec.index import exposures, live_events
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent
from rec.recommend.chain import Chain
from rec.recommend.request import Choice, Request
from serve import api
from serve.answering import LEAST_S, Answering, exported, written
from serve.asking import Together
from serve.degrade import Overloaded
from serve.exposures import Arm, ExposureLog
from serve.fallible import DEADLINE_S, BackedFront
from serve.stages import Ranker, Retriever, UserTower

REQUESTS = [
    Request(),
    Request(user_id="u04", k=25),
    Request(history=(Choice("P0001"), Choice("P0002", "cart")), context="a red dress", k=40),
    Request(history=(Choice("P0004", size="12", fit="large"),)),
]


def test_a_probe_counts_in_no_metric_of_answers(
    front: BackedFront, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = MagicMock()
    monkeypatch.setattr("serve.answering.metrics", lambda: counted)
    assert asyncio.run(answering.recommend(front, Request(k=1), whole=True))["items"]
    assert counted.mock_calls == []
    asyncio.run(answering.recommend(front, Request(k=1)))
    counted.answer.assert_called_once()


@pytest.mark.parametrize("compared", [True, False])
def test_a_comparison_counts_in_no_metric_and_names_no_list(
    front: BackedFront, answering: Answering, monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    counted = MagicMock()
    monkeypatch.setattr("serve.answering.metrics", lambda: counted)
    request = Request(user_id="u04", exclude=("unheard of",), k=3)
    answers = [
        asyncio.run(answering.recommend(front, request, compared=compared)),
        asyncio.run(answering.similar(front, 3, 3, evidence=False, compared=compared)),
        asyncio.run(answering.explain(front, request, "P0003", compared=compared)),
    ]
    assert len(answers[0]["items"]) == 3
    assert (answers[0]["exposure_id"] is None) == compared
    counts = {name for name, _, _ in counted.mock_calls}
    assert counts == (set() if compared else {"waited", "answer", "shopper", "unknown", "degraded"})


@pytest.mark.parametrize("seconds", [DEADLINE_S - LEAST_S - 0.3, DEADLINE_S - LEAST_S + 0.3])
def test_with_hardly_any_time_left_no_answer_is_begun(
    front: BackedFront, answering: Answering, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    counted = MagicMock()
    monkeypatch.setattr("serve.answering.metrics", lambda: counted)
    monkeypatch.setattr("serve.answering.waited", lambda: seconds)
    request = Request(k=3)
    ways: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: answering.recommend(front, request),
        lambda: answering.similar(front, 3, 3, evidence=False),
        lambda: answering.explain(front, request, "P0003"),
    ]
    late = seconds > DEADLINE_S - LEAST_S
    for way in ways:
        with pytest.raises(Overloaded, match=f"waited {seconds:.1f} s") if late else nullcontext():
            asyncio.run(way())
    assert counted.answer.call_count == (0 if late else 1)
    assert asyncio.run(answering.recommend(front, request, whole=True))["items"], "a probe asks whether it can be"


def test_what_an_answer_waits_for_its_thread_is_told_and_not_refused(
    front: BackedFront, answering: Answering, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = MagicMock()
    monkeypatch.setattr("serve.answering.metrics", lambda: counted)

    async def long() -> None:
        time.sleep(0.5)

    async def behind_others() -> dict[str, Any]:
        others = [asyncio.create_task(together.answer(long())) for _ in range(together._answering._max_workers)]
        await asyncio.sleep(0)  # they are in every thread first
        try:
            return await answering.recommend(front, Request(k=3))
        finally:
            await asyncio.gather(*others)

    assert not asyncio.run(behind_others())["degraded"]
    ((waited,), _) = counted.waited.call_args
    assert waited > 400


def test_who_leaves_before_a_thread_begins_is_answered_by_none(
    front: BackedFront, answering: Answering, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = MagicMock()
    monkeypatch.setattr("serve.answering.metrics", lambda: counted)
    go_on = threading.Event()

    async def held() -> None:
        go_on.wait(30)

    async def leaves() -> None:
        others = [asyncio.create_task(together.answer(held())) for _ in range(together._answering._max_workers)]
        await asyncio.sleep(0)
        asked = asyncio.create_task(answering.recommend(front, Request(k=3)))
        await asyncio.sleep(0.1)
        asked.cancel()
        await asyncio.sleep(0.1)
        go_on.set()
        await asyncio.gather(*others)
        with pytest.raises(asyncio.CancelledError):
            await asked

    with warnings.catch_warnings(record=True) as said:
        asyncio.run(leaves())
        gc.collect()
    assert not [each for each in said if "never awaited" in str(each.message)]
    counted.waited.assert_not_called()


def test_a_list_without_a_stage_names_no_list(front: BackedFront, answering: Answering) -> None:
    answer = asyncio.run(answering.recommend(front, Request(k=3, without=frozenset({"ranking"}))))
    assert (len(answer["items"]), answer["exposure_id"]) == (3, None)


def test_stages_that_do_not_have_a_named_bundle_are_done_without(
    front: BackedFront, own: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Together(own.store)
    monkeypatch.setattr("serve.loaded.Loaded.kept", lambda *_: None)
    log = ExposureLog(lambda: Connections(postgres.url(own.store), size=1), lambda *_: None)
    asked = Answering(started, log)
    named = asyncio.run(asked.recommend(front, Request(k=3), compared=True))
    assert named["degraded"] == ["user_tower_unavailable", "ann_unavailable"], "nor is a popular list ranked"
    assert len(named["items"]) == 3
    assert asyncio.run(asked.recommend(front, Request(k=3)))["degraded"] == []
    log.close()


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_answer_is_the_chain_s_and_has_the_declared_shape(
    front: BackedFront, answering: Answering, chain: Chain, request_: Request
) -> None:
    answer = asyncio.run(answering.recommend(front, request_))
    local = chain.recommend(request_)
    assert [item["product_id"] for item in answer["items"]] == [item["product_id"] for item in local.items]
    assert [item["score"] for item in answer["items"]] == [item["score"] for item in local.items]
    assert answer["degraded"] == []
    sent = bytes(written(answer).body)
    adapter = TypeAdapter(api.Recommendations)
    assert adapter.dump_python(adapter.validate_json(sent), mode="json") == TypeAdapter(Any).validate_json(sent)


def test_an_answer_stays_in_one_thread_that_is_not_the_loop_s(
    front: BackedFront, answering: Answering, monkeypatch: pytest.MonkeyPatch
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
    asyncio.run(answering.recommend(front, Request(user_id="u04")))
    assert len(threads) == 4
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1


def test_a_traced_answer_has_a_span_for_each_stage(
    front: BackedFront, answering: Answering, spans: InMemorySpanExporter
) -> None:
    with trace.get_tracer("test").start_as_current_span("request"):
        asyncio.run(answering.recommend(front, Request(user_id="u04")))
    *_, request = ended = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in ended}
    under = [(span.name, names[span.parent.span_id]) for span in ended if span.parent is not None]
    assert [name for name, parent in under if parent == "request"] == [
        "state",
        "user_tower",
        "retrieval",
        "ranking",
        "rules",
        "explanation",
    ]
    assert {parent for name, parent in under if name == "postgres"} == {"state", "retrieval", "explanation"}
    assert (request.attributes or {})["rec.bundle"] == front.bundle.id


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
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    stage: type,
    method: str,
    code: str,
) -> None:
    def fail(*_: object) -> None:
        raise DatabaseError("no connection to Postgres")

    fail.__name__ = method
    monkeypatch.setattr(stage, method, fail)
    answer = asyncio.run(answering.recommend(front, Request(user_id="u04", k=7)))
    assert answer["degraded"] == [code]
    assert len(answer["items"]) == 7
    with pytest.raises(Exception, match="no connection to Postgres"):
        asyncio.run(answering.recommend(front, Request(k=1), whole=True))


def test_what_was_shown_is_logged_and_what_was_probed_is_not(
    front: BackedFront, together: Together, published: Config
) -> None:
    counts = {"logged": 0, "dropped": 0}
    log = ExposureLog(
        lambda: Connections(postgres.url(published.store), size=1),
        lambda outcome, count: counts.update({outcome: counts[outcome] + count}),
    )
    asked = Answering(together, log)
    shown = asyncio.run(asked.recommend(front, Request(client_id="w", k=4), Arm(7, "treatment")))
    probed = asyncio.run(asked.recommend(front, Request(k=1), whole=True))
    log.close()
    assert counts == {"logged": 1, "dropped": 0}
    assert probed["exposure_id"] is None
    with psycopg.connect(postgres.url(published.store)) as connection:
        (kept,) = exposures.whole(connection, [shown["exposure_id"]])
    assert kept.products == [item["product_id"] for item in shown["items"]]
    assert (kept.client_id, kept.experiment, kept.arm) == ("w", 7, "treatment")
    assert shown["experiment"] == {"number": 7, "arm": "treatment"}


def test_what_is_stored_of_a_user_has_the_declared_shape(
    front: BackedFront, together: Together, own: Config, opened: Connections
) -> None:
    log = ExposureLog(lambda: Connections(postgres.url(own.store), size=1), lambda *_: None)
    asyncio.run(Answering(together, log).recommend(front, Request(user_id="u06", context="red", k=4)))
    log.close()
    at = datetime.now(UTC).replace(microsecond=0)
    live_events.store(opened, own.name, [
        LiveEvent(event_id="exported", user_id="u06", product_id="P0003", event="view", at=at, context="red", size="M")
    ])  # fmt: skip
    answer = exported(front.catalogue, "u06")
    assert isinstance(answer, Response), "FastAPI leaves a Response as it is: nothing is validated on the event loop"
    sent = TypeAdapter(Any).validate_json(bytes(answer.body))
    adapter = TypeAdapter(api.StoredUser)
    assert adapter.dump_python(adapter.validate_json(bytes(answer.body)), mode="json") == sent
    assert sent["user_id"] == "u06"
    assert sent["events"]
    assert sent["profile"]
    assert sent["live_events"][-1]["event_id"] == "exported"
    assert len(sent["exposures"][-1]["products"]) == 4
    assert exported(front.catalogue, "a stranger") is None


def test_what_would_wait_for_the_event_loop_is_an_error(together: Together) -> None:
    with pytest.raises(RuntimeError, match="waits for an event loop"):
        asyncio.run(together.answer(asyncio.sleep(0)))
