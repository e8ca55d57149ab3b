"""What a request has waited before it reached its server is taken off its time, where the shop's HAProxy tells it."""

import time

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rec.haproxy import PROGRAM
from serve.arrival import ARRIVED, SHORT_S, Arrival, Patience, due
from serve.fallible import DEADLINE_S

LONGEST = 4.0


def _simulated(rate: float, capacity: float, seconds: float) -> tuple[list[float], int]:
    """Waits of the answered and how many were refused, where `rate` a second come to one who answers `capacity`."""
    patience, waits, refused, free = Patience(LONGEST), [], 0, 0.0
    for number in range(int(rate * seconds)):
        came = number / rate
        begun = max(came, free)
        if patience.spent(begun - came, begun):
            refused, free = refused + 1, begun + 0.001
        else:
            waits.append(begun - came)
            free = begun + 1 / capacity
    return waits, refused


@pytest.mark.parametrize("over", [1.1, 1.5, 3.0])
def test_who_is_answered_while_too_many_come_waits_seconds_less_and_as_many_are_answered(over: float) -> None:
    waits, refused = _simulated(45 * over, 45, 120)
    assert np.percentile(waits, 99) < 2.5, "of the four that one may wait"
    assert len(waits) > 0.9 * 45 * 120
    assert refused > 0


def test_a_burst_is_answered() -> None:
    """Of what came while a server was held up for three seconds, and it is done with in one, nobody is refused."""
    patience = Patience(LONGEST)
    held = [(3.0 - number / 100 + number / 200, 10 + number / 200) for number in range(190)]
    assert not any(patience.spent(waited, now) for waited, now in held)
    assert patience.spent(1.5, 11.5), "a second later still"
    assert not patience.spent(0.9, 11.6)
    assert not patience.spent(1.5, 11.7), "somebody had not waited"
    assert not patience.spent(1.5, 19.0), "nor does a queue stand in which nobody was for seconds"


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), max_size=40))
def test_who_hardly_waited_is_never_refused_and_who_waited_too_long_always(asked: list[tuple[float, float]]) -> None:
    patience, now = Patience(LONGEST), 0.0
    for waited, later in asked:
        now += later
        spent = patience.spent(waited, now)
        assert not (spent and waited <= SHORT_S)
        assert spent or waited <= LONGEST


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
