"""What a request has waited before it reached its server is taken off its time, where the shop's HAProxy tells it."""

import time

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rec.haproxy import PROGRAM
from serve.arrival import ARRIVED, Arrival, due
from serve.fallible import DEADLINE_S


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Of an application behind HAProxy that answers how many seconds an answer has."""
    monkeypatch.setenv(PROGRAM, "/usr/sbin/haproxy")
    return _client()


def _client() -> TestClient:
    app = FastAPI()
    app.add_middleware(Arrival)

    @app.get("/left")
    async def left() -> float:
        return due() - time.monotonic()

    return TestClient(app)


def _ago(seconds: float) -> dict[str, str]:
    return {ARRIVED: str(round(1e6 * (time.time() - seconds)))}


@pytest.mark.parametrize("seconds", [0.0, 1.5, DEADLINE_S + 10])
def test_the_wait_is_taken_off(client: TestClient, seconds: float) -> None:
    left = client.get("/left", headers=_ago(seconds)).json()
    assert DEADLINE_S - seconds - 0.4 < left <= DEADLINE_S - seconds
    assert client.get("/left").json() > DEADLINE_S - 0.4, "of that request alone"


@pytest.mark.parametrize("arrived", ["", "yesterday", "-1", "1e9", "²", "1.5", "9" * 19, "9" * 30, "99999999999999999"])
def test_what_is_no_time_or_one_to_come_takes_nothing_off(client: TestClient, arrived: str) -> None:
    assert client.get("/left", headers={ARRIVED: arrived.encode()}).json() > DEADLINE_S - 0.4


def test_where_no_haproxy_of_the_shop_s_is_nobody_s_word_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRAM, raising=False)
    assert _client().get("/left", headers=_ago(3)).json() > DEADLINE_S - 0.4
