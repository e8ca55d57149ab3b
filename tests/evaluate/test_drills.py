"""The drills: steady load, what is done to processes, and what is read of the answers. On a shop they take minutes."""

import asyncio
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from jobs import benchmark
from rec import haproxy, ports, postgres, processes, publish
from rec.config import load as recipe
from rec.errors import ConfigError, RecError
from rec.evaluate import drills, load
from rec.evaluate.load import Asked, Paced
from serve import fallible
from tests.bundle import tiny
from tests.evaluate.local_server import served

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Whole(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "16")
        self.end_headers()
        self.wfile.write(b'{"degraded": []}')

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Whole).serve_forever()
"""
AWAY_S = 0.5
SERVERS = {"apart.ingress", "whole.server"}
"""What takes requests from the proxy."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that echoes, is slow with {"slow": s}, answers {"status": n} with that status and {"retry": s} so."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(body.get("slow", 0))
        if body.get("garbled"):
            return web.Response(text="{")
        headers = {"Retry-After": str(body["retry"])} if "retry" in body else {}
        return web.json_response(body, status=body.get("status", 200), headers=headers)

    with served("/", answer) as address:
        yield f"{address}/"


def test_the_rate_is_kept_whether_or_not_answers_come(url: str) -> None:
    with Paced(url, [{"slow": 0.5, "k": 1}, {"status": 503, "retry": 2}, {"status": 500}], rate=60) as asked:
        time.sleep(1.0)
    assert 40 <= len(asked.answers) <= 62
    by_number = {number: [a for a in asked.answers if a.number == number] for number in range(3)}
    assert {a.status for a in by_number[0]} == {200}
    assert all(a.body == {"slow": 0.5, "k": 1} and a.milliseconds >= 490 for a in by_number[0])
    assert ({a.status for a in by_number[1]}, {a.status for a in by_number[2]}) == ({503}, {500})
    assert all(a.body is None for a in by_number[1])
    assert {number: {a.retry for a in answers} for number, answers in by_number.items()} == {
        0: {False},
        1: {True},
        2: {False},
    }


def test_who_is_not_there_gives_no_answer() -> None:
    with Paced(f"http://127.0.0.1:{ports.free()}/", [{}], rate=20, keep=False) as asked:
        time.sleep(0.2)
    assert {a.status for a in asked.answers} == {load.UNREACHED}
    with pytest.raises(RecError, match="nobody listens at http://127"):
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
    """w: whole, d: degraded, l: late, x: failed, one after the other from second 100 on."""
    body = {kind: {"degraded": ["ranker"] * (kind == "d")} for kind in "wdl"}
    return [
        Asked(0, 100 + n / rate, 9e3 if kind == "l" else 1.0, 200 if kind in body else 503, body.get(kind))
        for n, kind in enumerate(kinds)
    ]


@given(before=st.text("wdlx", max_size=30), whole=st.integers(0, 60))
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


@pytest.mark.parametrize("holds", [False, True])
def test_who_cannot_hold_the_rate_is_not_harmed_and_who_stays_down_keeps_his_figures(
    holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drills, "SETTLED_S", 0.5)
    monkeypatch.setattr(drills, "LONG_S", 1.0)
    harmed = Event()

    async def answer(request: web.Request) -> web.Response:
        told = {"degraded": [] if holds else ["ranker"]}
        return web.json_response(told, status=500 if harmed.is_set() else 200)

    def harm() -> float:
        harmed.set()
        return time.monotonic()

    with served("/", answer) as address:
        found = drills._drilled("x", f"{address}/", [{}], 40, harm)
    assert found["x.done"]["value"] == harmed.is_set() == holds
    assert "x.recovery_s" not in found
    assert found.get("x.failed", {"value": 0})["value"] >= 30 * holds


def test_what_the_drills_read_of_a_kill_and_a_switch(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shop that goes on, and one that mixes bundles."""
    monkeypatch.setattr(drills, "SETTLED_S", 0.5)
    found = drills._drilled("x", url, [{"degraded": []}, {"degraded": [], "k": 1}], 40, time.monotonic)
    assert found.pop("x.answers")["value"] > 20
    assert 0 < found.pop("x.slowest_s")["value"] < drills.DEADLINE_S
    assert found.pop("x.done")["value"] == 1
    assert found.pop("x.recovery_s")["value"] == 0
    assert {each["value"] for each in found.values()} == {0}

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


def test_every_answer_to_a_harmed_shop_is_counted_by_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ill = Event()

    async def answer(request: web.Request) -> web.Response:
        kind = (await request.json())["kind"] if ill.is_set() else "whole"
        if kind == "lost":
            assert request.transport is not None
            request.transport.abort()
        if kind == "late":
            await asyncio.sleep(0.4)
        if kind in ("declared", "bare"):
            return web.Response(status=503, headers={"Retry-After": "2"} if kind == "declared" else {})
        if kind == "fault":
            return web.Response(status=500)
        return web.json_response({"degraded": ["ann_unavailable", "prices_unavailable"] if kind == "degraded" else []})

    def harm() -> float:
        ill.set()
        time.sleep(1.0)
        ill.clear()
        return time.monotonic()

    monkeypatch.setattr(drills, "SETTLED_S", 0.5)
    monkeypatch.setattr(drills, "DEADLINE_S", 0.2)
    monkeypatch.setattr(drills, "SLACK_S", 0.1)
    kinds = ("whole", "lost", "late", "declared", "bare", "fault", "degraded")
    with served("/", answer) as address:
        found = drills._drilled("x", f"{address}/", [{"kind": kind} for kind in kinds], 70, harm)
    counts = {name.removeprefix("x."): each["value"] for name, each in found.items()}
    assert all(
        counts[name] >= 5
        for name in ("lost", "refused", "degraded.ann_unavailable", "degraded.prices_unavailable", "late")
    )
    assert counts["degraded"] == counts["degraded.ann_unavailable"]
    assert counts["failed"] >= counts["refused"] + 5, "500, and 503 that says nothing"
    assert counts["unreached"] == 0
    assert 0.4 <= counts["slowest_s"] < 2
    assert counts["recovery_s"] < 0.5, "from when it was over on"
    assert (found["x.failed"]["goal"], found["x.late"]["goal"]) == (0, 0)


@contextmanager
def _kept_up(store: Path) -> Iterator[str]:
    """A process of the shop that listens, and another one AWAY_S after it died."""
    port, ended = ports.free(), Event()
    command = [sys.executable, "-c", SERVER, str(port)]

    def keep() -> None:
        while not ended.is_set():
            with subprocess.Popen(command, env={processes.SHOP: str(store)}) as server:
                while server.poll() is None:
                    if ended.wait(0.05):
                        server.kill()
            ended.wait(AWAY_S)

    keeper = Thread(target=keep)
    keeper.start()
    try:
        until = time.monotonic() + 30
        while ports.refused("127.0.0.1", port) is None:  # nobody has it yet
            assert time.monotonic() < until
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        ended.set()
        keeper.join()


def test_who_was_not_reached_while_the_proxy_is_away_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drills, "SETTLED_S", 0.5)
    way = drills.Way((), {}, "", soaked=False)
    with _kept_up(tmp_path) as url:
        kill = drills._faults(way, tmp_path, sys.executable)["proxy"]
        found = drills._drilled("x", url, [{}], 40, kill)
        with pytest.raises(RecError, match=r"no process of the shop of .* has a title that begins with 'ray::'"):
            drills._faults(way, tmp_path, "ray::")["proxy"]()
    counts = {name.removeprefix("x."): each["value"] for name, each in found.items()}
    assert counts["unreached"] >= 10
    assert counts["failed"] == counts["refused"] == counts["degraded"] == 0
    assert counts["lost"] <= 5, "those that it had begun"
    assert counts["answers"] > 30
    assert counts["recovery_s"] >= AWAY_S - 0.1


def test_a_postgres_that_is_frozen_or_killed_goes_on(
    new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drills, "FROZEN_S", 1.0)
    store = new_store().resolve()
    url = postgres.url(store)
    faults = drills._faults(drills.WAYS["whole"], store, "proxy")
    assert list(faults) == ["server", "proxy", "postgres", "postgres_frozen"]
    states: set[str] = set()
    with psycopg.connect(url, autocommit=True) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        server = backend.parent()
        assert server is not None
        over: list[float] = []
        freezing = Thread(target=lambda: over.append(faults["postgres_frozen"]()))
        began = time.monotonic()
        freezing.start()
        while time.monotonic() - began < 0.9 and states != {psutil.STATUS_STOPPED}:
            time.sleep(0.02)
            states = {each.status() for each in (server, backend)}
        assert states == {psutil.STATUS_STOPPED}
        connection.execute("SELECT 1")
        answered = time.monotonic()
        freezing.join()
        assert over[0] - began >= 1.0
        assert answered - began >= 0.9

        def interrupted(_: float) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(drills.time, "sleep", interrupted)
            with pytest.raises(KeyboardInterrupt):
                faults["postgres_frozen"]()
        connection.execute("SELECT 1")
        faults["postgres"]()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with psycopg.connect(postgres.url(store)) as again:
        assert again.execute("SELECT 1").fetchone() == (1,)
    assert not server.is_running()
    monkeypatch.setenv(postgres.URL_VARIABLE, "postgresql://elsewhere/shop")
    assert list(drills._faults(drills.WAYS["whole"], store, "proxy")) == ["server", "proxy"], "it is not ours"


@pytest.mark.parametrize("proxy", [haproxy.HAPROXY, haproxy.SERVE, None])
def test_each_way_is_drilled_behind_the_proxy_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, proxy: str | None
) -> None:
    started: list[tuple[str, ...]] = []
    done: list[tuple[str, float, Any]] = []

    @contextmanager
    def running(job: Path, arguments: Any, *how: str) -> Iterator[str]:
        started.append(how)
        yield "shop"

    def drilled(name: str, url: str, bodies: object, rate: float, harm: Any) -> dict[str, Any]:
        done.append((name, rate, harm.args[-1]))
        return {f"{name}.failed": 0}

    monkeypatch.delenv(postgres.URL_VARIABLE, raising=False)
    monkeypatch.setattr(haproxy, "binary", lambda: "/bin/haproxy")
    monkeypatch.setattr(drills.serving_speed, "running", running)
    monkeypatch.setattr(drills.serving_speed, "requests", lambda _: [])
    monkeypatch.setattr(drills, "_drilled", drilled)
    monkeypatch.setattr(drills, "_switched", lambda config, url, bodies, rate, other: {"switch.mixed": rate})
    monkeypatch.setattr(drills, "_soaked", lambda *_: ({"soak.failed": 0}, {"a curve": []}))

    def measured(rates: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
        figures, told = drills.measure(
            recipe("demo", []), Path("shop.py"), [], "b", rates=rates, minutes=1, proxy=proxy
        )
        return {name.removeprefix("demo.drills."): value for name, value in figures.items()}, told

    chosen = proxy or haproxy.HAPROXY
    figures, told = measured({"apart": 25.0, "whole": 50.0})
    assert started == [("--apart", "--proxy", chosen), ("--proxy", chosen)]
    assert told == {"proxy": chosen, "curves": {"a curve": []}}
    assert [(name, rate) for name, rate, _ in done] == [
        *((f"apart.{each}", 25.0) for each in ("ingress", "user_tower", "retriever", "ranker", "proxy")),
        *((f"apart.{each}", 25.0) for each in ("postgres", "postgres_frozen")),
        *((f"whole.{each}", 50.0) for each in ("server", "proxy", "postgres", "postgres_frozen")),
    ]
    killed = {title for name, _, title in done if name.endswith(".proxy")}
    assert killed == {"ray::ProxyActor" if proxy == haproxy.SERVE else "/bin/haproxy"}
    assert (figures["apart.switch.mixed"], figures["switch.mixed"]) == (25.0, 50.0)
    assert [figures[f"{way}.rate"]["value"] for way in ("apart", "whole")] == [25.0, 50.0]
    assert "soak.failed" in figures

    figures, told = measured({"apart": 10.0})
    assert started[2:] == [("--apart", "--proxy", chosen)]
    assert told["curves"] == {}
    assert not {name for name in figures if not name.startswith("apart.")}
    monkeypatch.setattr(haproxy, "binary", lambda: None)
    if proxy == haproxy.HAPROXY:
        with pytest.raises(ConfigError, match="HAProxy is not installed"):
            measured({"apart": 10.0})
    else:
        assert measured({"apart": 10.0})[1]["proxy"] == haproxy.SERVE


@pytest.mark.parametrize(
    ("told", "rates"),
    [
        ({}, {"apart": 25.0, "whole": 50.0}),
        ({"apart": True}, {"apart": 25.0}),
        ({"whole": True, "apart_rate": 10.0}, {"whole": 50.0}),
        ({"whole": True, "apart": True, "apart_rate": 10.0}, {"apart": 10.0, "whole": 50.0}),
    ],
)
def test_the_graph_has_a_rate_of_its_own(told: dict[str, Any], rates: dict[str, float]) -> None:
    options = {"rate": 50.0, "apart_rate": None, "apart": False, "whole": False, **told}
    assert benchmark._rates(Namespace(**options)) == rates


@pytest.mark.parametrize(("name", "option"), [("rate", "--rate"), ("apart_rate", "--apart-rate")])
def test_no_requests_a_second_are_none(name: str, option: str) -> None:
    options = {"html": None, "seeds": 1, "control_seeds": 0, "minutes": 1.0, "rate": 50.0, "apart_rate": None}
    with pytest.raises(ConfigError, match=f"{option} 0: it has to be above zero"):
        benchmark.run(recipe("demo", []), Namespace(**{**options, name: 0.0}))


def test_an_answer_is_due_when_the_server_says_so() -> None:
    assert drills.DEADLINE_S == fallible.DEADLINE_S < drills.FROZEN_S


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("proxy", [haproxy.SERVE, haproxy.HAPROXY])
def test_a_small_shop_is_drilled(
    new_store: Callable[[], Path], repository: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    if proxy == haproxy.HAPROXY and haproxy.binary() is None:
        pytest.skip("Ray has no HAProxy for this system")
    monkeypatch.setattr(drills, "SWITCHES", 4)
    store = new_store().resolve()
    made = [publish.run(tiny.make(tiny.config(store, seed=seed)))["bundle"] for seed in (23, 17)]
    config = tiny.config(store)
    arguments = ["--set", f"store={store}", "--set", f"name={config.name}"]
    figures, told = drills.measure(
        config,
        repository / "jobs" / "shop.py",
        arguments,
        made[0],
        rates={"apart": 10.0, "whole": 20.0},
        minutes=0.5,
        proxy=proxy,
    )
    values = {name.removeprefix("tiny.drills."): each["value"] for name, each in figures.items()}
    print({name: value for name, value in values.items() if value})
    assert told["proxy"] == proxy
    faults = {name.removesuffix(".recovery_s") for name in values if name.endswith(".recovery_s")}
    assert len(faults) == 11
    for fault in faults:
        assert values[f"{fault}.answers"] > 0, fault
        if proxy == haproxy.HAPROXY or fault not in SERVERS:
            # Serve's own proxy keeps callers waiting for the next server, and may fail some of them
            assert (values[f"{fault}.failed"], values[f"{fault}.late"]) == (0, 0), fault
    for way in drills.WAYS:
        assert values[f"{way}.proxy.unreached"] > 0
        assert values[f"{way}.postgres_frozen.degraded.ann_unavailable"] > 0
    for switch in ("switch", "apart.switch"):
        assert (values[f"{switch}.failed"], values[f"{switch}.mixed"]) == (0, 0)
        assert values[f"{switch}.of.other"] > 0
        assert values[f"{switch}.compared"] > 0


def test_marked_processes_are_found_by_mark_and_title(tmp_path: Path) -> None:
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
