"""A replica that is told to stop: those it is answering get their answers, and their lists are logged."""

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from rec import postgres
from tests.serve.conftest import REPOSITORY, Shop, frozen, published_in, starting

pytestmark = pytest.mark.long

CALLERS = 8
DELETE = "import sys, ray; from ray import serve; ray.init(address=sys.argv[1]); serve.delete('shop')"


@pytest.fixture
def whole(new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of its Ray, which is to be told
    yield from starting(published_in(new_store()), "--proxy", "serve")


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
    with ThreadPoolExecutor(CALLERS) as callers:  # all at once, with however few processors
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
