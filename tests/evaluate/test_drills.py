"""The drills on a shop: steady load, and what is read of the answers. Drills take minutes: `benchmark.py drills`."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from rec import ports, processes
from rec.config import load as recipe
from rec.errors import RecError
from rec.evaluate import drills, load
from rec.evaluate.load import Asked, Paced
from tests.evaluate.local_server import served


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that echoes, is slow with {"slow": s} and answers {"status": n} with that status."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(body.get("slow", 0))
        if body.get("garbled"):
            return web.Response(text="{")
        return web.json_response(body, status=body.get("status", 200))

    with served("/", answer) as address:
        yield f"{address}/"


def test_the_rate_is_kept_whether_or_not_answers_come(url: str) -> None:
    with Paced(url, [{"slow": 0.5, "k": 1}, {"status": 503}, {"status": 500}], rate=60) as asked:
        time.sleep(1.0)
    assert 40 <= len(asked.answers) <= 62
    by_number = {number: [a for a in asked.answers if a.number == number] for number in range(3)}
    assert {a.status for a in by_number[0]} == {200}
    assert all(a.body == {"slow": 0.5, "k": 1} and a.milliseconds >= 490 for a in by_number[0])
    assert ({a.status for a in by_number[1]}, {a.status for a in by_number[2]}) == ({503}, {500})
    assert all(a.body is None for a in by_number[1])


def test_who_is_not_there_gives_no_answer() -> None:
    with Paced(f"http://127.0.0.1:{ports.free()}/", [{}], rate=20, keep=False) as asked:
        time.sleep(0.2)
    assert {a.status for a in asked.answers} == {load.LOST}
    with pytest.raises(RecError, match="answers a request with status 0"):
        load.one(f"http://127.0.0.1:{ports.free()}/", {})


def test_late_and_garbled_answers_are_told_from_lost_ones(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "TIMEOUT_S", 0.3)
    with Paced(url, [{"slow": 2}, {"garbled": True}], rate=20) as asked:
        time.sleep(0.25)
        assert 0 < asked.longest_wait_s < 0.3
    assert asked.longest_wait_s == 0
    assert {a.status for a in asked.answers if a.number == 0} == {load.LATE}
    assert {a.status for a in asked.answers if a.number == 1} == {load.GARBLED}


def test_one_answer_is_its_body_or_an_error(url: str) -> None:
    assert load.one(url, {"k": 3}) == {"k": 3}
    with pytest.raises(RecError, match="status 503"):
        load.one(url, {"status": 503})


def _answers(kinds: str, rate: float) -> list[Asked]:
    """w: whole, d: degraded, x: failed, one after the other from second 100 on."""
    status = {"w": 200, "d": 200, "x": 503}
    return [
        Asked(0, 100 + n / rate, 1.0, status[kind], {"degraded": ["ranker"] * (kind == "d")} if kind != "x" else None)
        for n, kind in enumerate(kinds)
    ]


@given(before=st.text("wdx", max_size=30), whole=st.integers(0, 60))
def test_recovery_is_where_the_whole_answers_begin(before: str, whole: int) -> None:
    answers = _answers(before + "w" * whole, 10)
    bad = len(before.rstrip("w"))
    found = drills.recovered(answers[::-1], 100.0)
    steady = len(before) + whole - bad
    if steady - 1 < drills.SETTLED_S * 10:
        assert found is None
    else:
        assert found == pytest.approx(bad / 10)


def test_what_was_sent_before_the_kill_says_nothing_of_recovery() -> None:
    answers = _answers("x" * 5 + "w" * 40, 10)
    assert drills.recovered(answers, 100.5) == 0.0
    assert drills.recovered([], 100.0) is None


def test_a_slope_has_an_interval_that_tells_growth_from_what_wanders() -> None:
    """Noise that remembers the last part, as memory does."""
    config, hours, rng = recipe("demo", []), np.arange(360) / 360, np.random.default_rng(0)
    misses = 0
    for _ in range(40):
        noise = rng.normal(0, 1, 360)
        for part in range(1, 360):
            noise[part] += 0.6 * noise[part - 1]
        low, high = drills._slope(hours, 100 + 20 * hours + noise, "MiB an hour", config)["ci95"]
        assert low > 5, "growth is seen"
        misses += not low < 20 < high
    assert misses <= 8, "one in twenty, and some more: there are few blocks"


def test_what_the_drills_read_of_a_kill_and_a_switch(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shop that fails for a while, and one that mixes bundles."""
    monkeypatch.setattr(drills, "BEFORE_S", 0.2)
    monkeypatch.setattr(drills, "SETTLED_S", 0.5)
    found = drills._killed("x", url, [{"degraded": []}, {"degraded": [], "k": 1}], 40, lambda: None)
    assert found["x.failed"]["value"] == found["x.lost"]["value"] == found["x.degraded"]["value"] == 0
    assert found["x.recovery_s"]["value"] == 0
    monkeypatch.setattr(drills, "LONG_S", 1.0)
    with pytest.raises(RecError, match="not whole"):
        drills._killed("x", url, [{"status": 500}], 40, lambda: None)

    now = ["a"]
    monkeypatch.setattr(drills, "SWITCHES", 4)
    monkeypatch.setattr(drills, "SWITCH_S", 0.2)
    monkeypatch.setattr(drills.publish, "activate", lambda config, name, force: now.__setitem__(0, name))
    monkeypatch.setattr(drills.publish, "rollback", lambda config: now.__setitem__(0, "a"))
    lists = {"a": ["1", "2"], "b": ["2", "1"]}

    def body(products: str) -> dict[str, object]:
        return {"bundle": now[0], "degraded": [], "items": [{"product_id": each} for each in lists[products]]}

    monkeypatch.setattr(load, "one", lambda url, request: body(now[0]))

    class Mixing:
        answers: list[Asked]
        wrong = False

        def __init__(self, *_: object, **__: object) -> None:
            self.answers = []

        def __enter__(self) -> "Mixing":
            return self

        def __exit__(self, *_: object) -> None:
            """One of each bundle, the second with a list of neither where `wrong`."""
            for name in ("a", "b"):
                now[0] = name
                told = body(name)
                if self.wrong and name == "b":
                    told["items"] = told["items"][:1]  # type: ignore[index]
                self.answers.append(Asked(0, 1.0, 1.0, 200, told))

    monkeypatch.setattr(drills, "Paced", Mixing)
    for wrong in (False, True):
        monkeypatch.setattr(Mixing, "wrong", wrong)
        now[0] = "a"
        found = drills._switched(recipe("demo", []), url, [{}], 10, "b")
        assert (found["switch.compared"]["value"], found["switch.of.other"]["value"]) == (2, 1)
        assert found["switch.mixed"]["value"] == int(wrong)
        assert now[0] == "a", "as it was"


def test_marked_processes_are_found_by_mark_and_title(tmp_path: Path) -> None:
    import subprocess
    import sys

    environment = {processes.SHOP: str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    try:
        found = processes.marked(processes.SHOP, str(tmp_path))
        assert [process.pid for process in found] == [child.pid]
        assert processes.titled(found, sys.executable) == found
        assert processes.titled(found, "ray::") == []
    finally:
        child.kill()
        child.wait()
    assert processes.marked(processes.SHOP, str(tmp_path)) == []
