"""A replica that is told to stop, or its shop: those it is answering get their answers, and their lists are logged."""

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import psycopg
import pytest

from jobs.shop import STOP_SECONDS
from rec import postgres
from tests.serve.conftest import REPOSITORY, Shop, frozen, published_in, starting

pytestmark = pytest.mark.slow

CALLERS = 8
DELETE = "import sys, ray; from ray import serve; ray.init(address=sys.argv[1]); serve.delete('shop')"


@pytest.fixture
def whole(new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of its Ray, which is to be told
    yield from starting(published_in(new_store()), "--proxy", "serve")


@pytest.fixture(params=[["--proxy", "serve"], []], ids=["serve", "haproxy"])
def selling(new_store: Callable[[], Path], request: pytest.FixtureRequest) -> Iterator[Shop]:
    yield from starting(published_in(new_store()), *request.param)


def address(shop: Shop) -> str:
    """Where the shop's Ray is."""
    told = {
        word.partition("=")[2]
        for process in shop.processes().values()
        for word in process.cmdline()
        if word.startswith(("--gcs-address=", "--gcs_address="))
    }
    (found,) = told
    return found


def test_a_replica_that_is_told_to_stop_answers_whom_it_has(whole: Shop) -> None:
    assert whole.recommend(k=5)["degraded"] == []
    where = address(whole)
    with ThreadPoolExecutor() as callers:
        with frozen(whole.recipe.store, postmaster=True):  # an answer takes seconds
            asked = [callers.submit(whole.recommend, client_id=f"last{n}", k=5) for n in range(CALLERS)]
            time.sleep(0.5)
            assert not any(each.done() for each in asked)
            told = subprocess.Popen([sys.executable, "-c", DELETE, where], cwd=REPOSITORY)
            answers = [each.result() for each in asked]
        assert told.wait(60) == 0
    assert {len(answer["items"]) for answer in answers} == {5}
    assert whole.client.post("/v1/recommend", json={"k": 5}).status_code == 404
    with psycopg.connect(postgres.url(whole.recipe.store)) as connection:
        logged = connection.execute("SELECT count(*) FROM exposures WHERE client_id LIKE 'last_'").fetchone()
    assert logged == (CALLERS,)


def test_a_shop_that_is_stopped_logs_every_list_that_it_has_shown(selling: Shop) -> None:
    shown: list[str] = []
    enough = Event()

    def shopping() -> None:
        with httpx.Client(base_url=selling.url, timeout=60) as client:
            while not enough.is_set():
                try:
                    answer = client.post("/v1/recommend", json={"client_id": "last", "k": 3})
                except httpx.TransportError:  # it has ended
                    return
                if answer.status_code != 200:  # it ends
                    return
                shown.append(answer.json()["exposure_id"])

    with ThreadPoolExecutor() as callers:
        told = [callers.submit(shopping) for _ in range(CALLERS)]
        try:
            while len(shown) < 10 * CALLERS:
                assert not any(each.done() for each in told)
                time.sleep(0.1)
            began = time.monotonic()
            done = selling.job("stop")
            assert done.returncode == 0, done.stderr
            assert time.monotonic() - began < STOP_SECONDS, "it was killed"
        finally:
            enough.set()
        for each in told:
            each.result()
    with psycopg.connect(postgres.url(selling.recipe.store)) as connection:
        rows = connection.execute("SELECT exposure_id::text FROM exposures WHERE client_id = 'last'").fetchall()
    lost = set(shown) - {row[0] for row in rows}
    assert not lost, f"{len(lost)} of {len(shown)}"
