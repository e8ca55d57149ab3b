"""Ray Serve's switches: that there are such, and what is made of the times with and without them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.serve._private import constants

from rec import config
from rec.evaluate import load, serving_speed, serving_switches
from rec.evaluate.load import Answers


@pytest.mark.parametrize("name", sorted({name for each in serving_switches.SWITCHES.values() for name in each}))
def test_every_switch_is_one_that_serve_reads(name: str) -> None:
    assert isinstance(getattr(constants, name), bool), "this Ray has no such switch: look what became of it"


def test_a_switch_is_measured_over_the_graph_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Mapping[str, str]] = []

    @contextmanager
    def running(job: Path, arguments: Any, *how: str, environment: Mapping[str, str]) -> Iterator[str]:
        assert how == ("--apart", "--proxy", "serve")
        started.append(environment)
        yield "grpc" if "RAY_SERVE_USE_GRPC_BY_DEFAULT" in environment else "plain"

    @contextmanager
    def fused(*_: object) -> Iterator[str]:
        yield "fused"

    asked = iter(range(10_000))

    def closed(url: str, bodies: object, *, clients: int, seconds: float) -> Answers:
        slow = 1 + next(asked) // 8 % 5  # a machine that is not always as fast: never between two that are compared
        took = {"fused": 5.0, "plain": 20.0, "grpc": 15.0}[url] * slow
        answered = round(clients * seconds * 6_000 / took)
        return Answers(
            seconds=seconds, milliseconds=np.full(answered, took), statuses={200: answered, 503: url == "grpc"}
        )

    monkeypatch.setattr(serving_speed, "running", running)
    monkeypatch.setattr(serving_speed, "fused", fused)
    monkeypatch.setattr(serving_speed, "requests", lambda _: [])
    monkeypatch.setattr(load, "closed", closed)
    figures = serving_switches.measure(config.load("demo"), Path("jobs/shop.py"), [], quick=True)
    values = {name.removeprefix("demo.serving."): figure["value"] for name, figure in figures.items()}
    assert started == [{}, *serving_switches.SWITCHES.values()]
    assert values["switch.grpc.p50.over.base"] == 0.75
    assert values["switch.grpc.per_s.over.base"] == pytest.approx(20 / 15, abs=0.01)
    assert values["switch.again.p50.over.base"] == values["switch.throughput.per_s.over.base"] == 1
    assert values["failed"] == 2 * serving_switches.QUICK_STRETCHES
