"""One answer is asked by one worker at a time, whichever run it belongs to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from rec import postgres
from rec.config import load
from rec.enrich import cache, engine, workers
from rec.enrich.answers import Answer
from rec.enrich.prompt import PROMPT_VERSION
from rec.enrich.text import canonical
from rec.vocab.std import StdVocabulary

ROW = {"product_id": "A1", "title": "Alma Coat", "description": "Warm.", "html": None, "attributes": []}


@contextmanager
def _waiting(url: str, ask: workers.Ask, batch: pa.Table) -> Iterator[threading.Thread]:
    """`ask` at work in a thread, once it waits for a lock of the database."""
    thread = threading.Thread(target=ask, args=(batch,), daemon=True)
    thread.start()
    with postgres.connect(url, autocommit=True) as connection:
        for _ in range(300):
            waiting = connection.execute(
                "SELECT 1 FROM pg_locks JOIN pg_database ON oid = database "
                "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
            ).fetchone()
            if waiting is not None:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the second worker does not wait for the first")
    yield thread


@pytest.mark.slow
def test_a_second_worker_waits_for_the_first_and_asks_nothing(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Engine:
        def __init__(self, *_: Any) -> None: ...

        def complete(self, question: str, *_: Any) -> None:
            asked.append(question)

    monkeypatch.setattr(engine, "LlamaCpp", Engine)
    enrich = load("demo").enrich
    text = canonical(ROW, enrich.max_text_chars)
    key = cache.answer_key(text.content_hash, enrich.model, PROMPT_VERSION, StdVocabulary.load(None).asked)
    answer = Answer(enrich.model, PROMPT_VERSION, "finished", '{"re": {}, "std": {}}', 1, 1)
    with postgres.connect(fresh, autocommit=True) as first:
        cache.prepare(first)
        ask = workers.Ask(enrich, fresh, "second")
        with cache.alone(first, key), _waiting(fresh, ask, pa.Table.from_pylist([ROW])) as thread:
            cache.pay(first, "first", key, answer, cache.Call(1, 1, 0.1))
        thread.join(30)
        assert not thread.is_alive()
        assert asked == []
        assert cache.usage(first, "first").calls == 1
        assert cache.usage(first, "second").calls == 0
