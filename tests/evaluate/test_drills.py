"""The drills on a shop: steady load, and what is read of the answers. Drills take minutes: `benchmark.py drills`."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

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


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that echoes, is slow with {"slow": s} and answers {"status": n} with that status."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(body.get("slow", 0))
        return web.json_response(body, status=body.get("status", 200))

    port, ready, ended = ports.free(), Event(), Event()

    async def serve() -> None:
        application = web.Application()
        application.router.add_post("/", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.05)
        await runner.cleanup()

    thread = Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port}/"
    ended.set()
    thread.join()


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
    assert {a.status for a in asked.answers} == {0}
    with pytest.raises(RecError, match="answers a request with status 0"):
        load.one(f"http://127.0.0.1:{ports.free()}/", {})


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


def test_a_slope_has_an_interval_that_tells_growth_from_noise() -> None:
    config = recipe("demo", [])
    hours = np.arange(60) / 60
    noise = np.random.default_rng(0).normal(0, 1, 60)
    grows = drills._slope(hours, 100 + 20 * hours + noise, "MiB an hour", config)
    assert grows["ci95"][0] < 20 < grows["ci95"][1]
    assert grows["ci95"][0] > 10
    flat = drills._slope(hours, 100 + noise, "MiB an hour", config)
    assert flat["ci95"][0] < 0 < flat["ci95"][1]


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
