"""What a request has waited before it reached its server is taken off its time."""

import time

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.arrival import ARRIVED, LEAST_S, Arrival, due
from serve.fallible import DEADLINE_S


@pytest.fixture
def client() -> TestClient:
    """Of an application that answers how many seconds an answer has."""
    app = FastAPI()
    app.add_middleware(Arrival)

    @app.get("/readyz")
    @app.get("/left")
    async def left() -> float:
        return due() - time.monotonic()

    return TestClient(app)


def _ago(seconds: float) -> dict[str, str]:
    return {ARRIVED: str(round(1e6 * (time.time() - seconds)))}


@pytest.mark.parametrize("seconds", [0.0, 1.5, DEADLINE_S - LEAST_S - 0.5])
def test_the_wait_is_taken_off(client: TestClient, seconds: float) -> None:
    left = client.get("/left", headers=_ago(seconds)).json()
    assert DEADLINE_S - seconds - 0.4 < left <= DEADLINE_S - seconds
    assert client.get("/left").json() > DEADLINE_S - 0.4, "of that request alone"


def test_with_hardly_any_time_left_it_is_refused_and_told_when_to_ask_again(client: TestClient) -> None:
    answer = client.get("/left", headers=_ago(DEADLINE_S - LEAST_S + 0.1))
    assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "overloaded", "2")
    assert client.get("/readyz", headers=_ago(60)).status_code == 200, "a probe asks whether the server is well"


@pytest.mark.parametrize("arrived", ["", "yesterday", "-1", "1e9", "²", "1.5", "9" * 19, "9" * 30, "99999999999999999"])
def test_what_is_no_time_or_one_to_come_takes_nothing_off(client: TestClient, arrived: str) -> None:
    assert client.get("/left", headers={ARRIVED: arrived.encode()}).json() > DEADLINE_S - 0.4
