"""What all workers of a run share: no minute sees more requests than allowed, no run spends more than its budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.enrich.pace import Meter

moments = st.lists(st.floats(0, 30), min_size=1, max_size=80).map(sorted)


@given(moments, st.integers(1, 600), st.integers(1, 2_000))
def test_no_minute_sees_more_requests_than_allowed(asked: list[float], limit: int, tokens: int) -> None:
    meter = Meter(limit, None, None)
    sent = sorted(now + meter.reserve(tokens, now) for now in asked)
    for at in sent:
        assert sum(at <= other < at + 60 - 1e-6 for other in sent) <= limit


@given(moments, st.integers(1_000, 100_000), st.lists(st.integers(1, 900), min_size=80, max_size=80))
def test_no_minute_sees_more_tokens_than_allowed(asked: list[float], limit: int, sizes: list[int]) -> None:
    meter = Meter(None, limit, None)
    sent = [(now + meter.reserve(size, now), size) for now, size in zip(asked, sizes, strict=False)]
    for at, _ in sent:
        inside = [size for other, size in sent if at <= other < at + 60 - 1e-6]
        assert sum(inside) <= limit + inside[-1], "the last one may reach over the end of the minute"


def test_without_limits_nobody_waits() -> None:
    meter = Meter(None, None, None)
    assert [meter.reserve(1_000, 5.0) for _ in range(3)] == [0.0] * 3


def test_a_hold_is_for_everyone() -> None:
    meter = Meter(None, None, None)
    meter.hold(7.0, now=1.0)
    assert meter.reserve(1, now=2.0) == pytest.approx(6.0)
    assert meter.held(now=2.0) == pytest.approx(6.0), "also for what had its moment already"
    assert meter.held(now=9.0) == meter.reserve(1, now=9.0) == 0.0


calls = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), max_size=60)


@given(st.floats(0, 10), calls)
def test_a_budget_is_never_overspent(budget: float, made: list[tuple[float, float]]) -> None:
    """Each call: the most it may cost, and the share of it that it does; they overlap as they like."""
    meter = Meter(None, None, budget)
    spent = 0.0
    open_calls: list[tuple[float, float]] = []
    for most, share in made:
        if meter.admit(most):
            open_calls.append((most, most * share))
            spent += most * share
        if len(open_calls) > 3:
            meter.settle(*open_calls.pop(0))
    assert spent <= budget + 1e-9


def test_what_is_in_flight_may_still_give_back() -> None:
    meter = Meter(None, None, 1.0)
    assert meter.admit(0.8) is True
    assert meter.admit(0.8) is None
    meter.settle(0.8, 0.1)
    assert meter.admit(0.8) is True
    meter.settle(0.8, 0.8)
    assert meter.admit(0.8) is False
