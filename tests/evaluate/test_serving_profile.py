"""Where a profile says that time goes: stacks by layer, processes by kind, a real process that py-spy samples."""

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec import config
from rec.evaluate import benchmark, cpu_time, load, serving_profile, serving_speed, stacks
from rec.evaluate.load import Answers

POOL = "thread (71): answer_3;Thread._bootstrap (threading.py:1002);_worker (concurrent/futures/thread.py:83)"
WALK = "finish (rec/recommend/walk.py:112);Answering._recommend (serve/answering.py:80);walk (rec/recommend/walk.py:60)"
RETRIEVE = f"{POOL};{WALK};Fallible.retrieve (serve/fallible.py:115);Retriever.retrieve (serve/stages.py:79)"
ENCODE = f"{POOL};{WALK};Fallible.encode (serve/fallible.py:104);Combining.__call__ (serve/combining.py:60)"
SAMPLE = {
    f"{RETRIEVE};Cursor.execute (psycopg/cursor.py:90);Watched.wait (rec/index/connections.py:104);"
    "Connection.wait (psycopg/connection.py:484)": ("psycopg.wait", "retrieval"),
    f"{RETRIEVE};Watched.wait (rec/index/connections.py:104);Connection.wait (psycopg/connection.py:484);"
    "Watched._bounded (rec/index/connections.py:118)": ("psycopg", "retrieval"),
    f"{RETRIEVE};_Searches.search (rec/index/search.py:90);Cursor.fetchall (psycopg/cursor.py:230)": (
        "psycopg",
        "retrieval",
    ),
    f"{RETRIEVE};_found (rec/index/search.py:235);mean (numpy/_core/_methods.py:101)": ("ours.retrieval", "retrieval"),
    f"{ENCODE};Event.wait (threading.py:629);Condition.wait (threading.py:327)": ("combining.wait", "user_tower"),
    f"{ENCODE};UserTower.vectors (rec/models/user_tower.py:90);Linear.forward (torch/nn/modules/linear.py:134)": (
        "torch",
        "user_tower",
    ),
    f"{POOL};{WALK};Fallible.known (serve/fallible.py:90);ConnectionPool.getconn (psycopg_pool/pool.py:170);"
    "Condition.wait (threading.py:327)": ("pool.wait", "state"),
    f"{POOL};{WALK}": ("ours.walk", "outside"),
    "thread (70): Thread-2 (_run);BaseEventLoop.run_forever (asyncio/base_events.py:608);"
    "UserCallableWrapper.call (ray/serve/_private/replica.py:1300);written (serve/answering.py:30)": (
        "json",
        "outside",
    ),
    "thread (70): Thread-2 (_run);BaseEventLoop.run_forever (asyncio/base_events.py:608);"
    "UserCallableWrapper.call (ray/serve/_private/replica.py:1300);Request.json (starlette/requests.py:254);"
    "loads (json/__init__.py:346)": ("json", "outside"),
    "thread (70): Thread-2 (_run);BaseEventLoop.run_forever (asyncio/base_events.py:608)": ("http", "outside"),
    "thread (69): MainThread;main_loop (ray/_private/worker.py:960)": ("ray", "outside"),
    "thread (69): MainThread;Guard.__call__ (serve/guard.py:60)": ("ours.guard", "outside"),
    "thread (68): sleeper;sleep (somewhere.py:3)": ("other", "outside"),
    "thread (67)": ("other", "outside"),
}
"""Stack, and the layer and the stage that it is of."""


@pytest.mark.parametrize("stack", SAMPLE)
def test_a_sample_is_of_the_innermost_layer_and_the_outermost_stage(stack: str) -> None:
    (found,) = stacks.read(f"{stack} 3\n")
    assert (stacks.layer(found), stacks.stage(found), found.samples) == (*SAMPLE[stack], 3)


@given(st.lists(st.tuples(st.sampled_from(sorted(SAMPLE)), st.integers(1, 10**6)), min_size=1))
def test_shares_sum_to_one(drawn: list[tuple[str, int]]) -> None:
    read = stacks.read("".join(f"{stack} {samples}\n" for stack, samples in drawn))
    found = stacks.shares(read)
    for what in ("layers", "stages", "threads", "functions"):
        assert sum(found[what].values()) == pytest.approx(1)
        assert list(found[what].values()) == sorted(found[what].values(), reverse=True)
    total = sum(samples for _, samples in drawn)
    waits = sum(samples for stack, samples in drawn if SAMPLE[stack][0] == "psycopg.wait")
    assert found["layers"].get("psycopg.wait", 0) == pytest.approx(waits / total)


def test_lines_of_a_function_and_threads_of_a_pool_count_together() -> None:
    lines = [f"thread ({n}): answer_{n};Fallible.rank (serve/fallible.py:{n}) 2" for n in range(4)]
    found = stacks.shares(stacks.read("\n".join(lines)))
    assert found["threads"] == {"answer": 1}
    assert found["functions"] == {"Fallible.rank (serve/fallible.py)": 1}
    assert stacks.shares([]) == {"layers": {}, "stages": {}, "threads": {}, "functions": {}}


def test_an_answer_is_in_the_threads_that_work_on_one() -> None:
    read = stacks.read("".join(f"{stack} 1\n" for stack in SAMPLE))
    assert len(stacks.answering(read)) == sum(WALK in stack for stack in SAMPLE)


@pytest.mark.parametrize("frame", [*stacks.STAGES, *stacks.COMPILED, stacks.ANSWER])
def test_what_marks_stages_and_layers_is_in_the_code(frame: str) -> None:
    name, _, file = frame.removesuffix(")").partition(" (")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert reduce(getattr, name.split("."), module).__module__ == module.__name__


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::ServeReplica:shop:Recommender", "", ""], "ServeReplica:shop:Recommender"),
        (["ray::ServeController.listen_for_change"], "ServeController"),
        (["ray::MapWorker(MapBatches(Ask)).submit"], "MapWorker"),
        (["postgres: postgres postgres [local] SELECT", ""], "postgres client"),
        (["postgres: io worker 1", ""], "postgres io worker"),
        (["postgres:", "parallel", "worker", "for", "PID", "9"], "postgres parallel worker"),
        (["/opt/bin/postgres", "-D", "/var/store/postgres"], "postgres postmaster"),
        (["/opt/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x"], "raylet"),
        (["ray-dashboard-EventHead-0", ""], "dashboard"),
        (["/opt/bin/python", "-u", "/opt/ray/_private/log_monitor.py", "--x"], "log_monitor"),
        (["/opt/bin/python3.11", "/opt/bin/serve", "run", "serve.json"], "serve"),
        (["/opt/haproxy", "-f", "haproxy.cfg"], "haproxy"),
        ([], "unknown"),
    ],
)  # fmt: skip
def test_processes_are_told_by_their_titles(command: list[str], kind: str) -> None:
    assert cpu_time.kind(command) == kind


def test_cpu_time_between_two_looks_is_summed_by_kind() -> None:
    first, second = psutil.Process(), psutil.Process(os.getppid())
    before = {first: ("replica", 4.0)}
    after = {second: ("raylet", 1.5), first: ("replica", 6.5)}
    assert list(cpu_time.by_kind(before, after).items()) == [("replica", 2.5), ("raylet", 1.5)]
    assert cpu_time.by_kind(after, {first: ("replica", 7.0)}) == {"replica": 0.5}, "who is gone is left out"


def test_this_process_is_what_sends_the_load(tmp_path: Path) -> None:
    before = cpu_time.spent(tmp_path)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    taken = cpu_time.by_kind(before, cpu_time.spent(tmp_path))
    assert list(taken) == [cpu_time.LOAD]
    assert 0.15 < taken[cpu_time.LOAD] < 2


def _stretch() -> Answers:
    time.sleep(0.1)
    return Answers(0.1, np.ones(5), {200: 5})


@pytest.mark.skipif(shutil.which("py-spy", path=str(Path(sys.executable).parent)) is None, reason="no py-spy")
def test_a_process_is_sampled_while_load_is_sent_and_a_missing_one_is_a_sentence() -> None:
    code = (
        "import json, threading\n"
        "many = list(range(3000))\n"
        "def encode():\n"
        "    print(flush=True)\n"
        "    while True: json.dumps(many)\n"
        "threading.Thread(target=encode, name='answer_7').start()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                raw, per_second = serving_profile.recorded(process.pid, "--gil", 1.0, _stretch)
            except serving_profile.Refused as error:
                if os.geteuid() == 0:
                    raise
                pytest.skip(str(error))  # this user may not trace
        finally:
            process.kill()
    found = stacks.shares(stacks.read(raw))
    assert found["threads"]["answer"] > 0.8
    assert found["layers"]["json"] > 0.8
    assert per_second == pytest.approx(50)
    with pytest.raises(serving_profile.Refused, match=r"took no stacks of process .*ptrace_scope"):
        serving_profile.recorded(process.pid, "--gil", 1.0, _stretch)


def test_without_py_spy_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(serving_profile.Refused, match="pip install py-spy"):
        serving_profile.recorded(os.getpid(), "--gil", 1.0, _stretch)


def test_where_stacks_cannot_be_had_the_profile_says_so_and_tells_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REC_DATABASE_URL", raising=False)

    @contextmanager
    def running(*_: object) -> Iterator[str]:
        yield "shop"

    def closed(url: str, bodies: object, *, clients: int, seconds: float) -> Answers:
        assert (url, clients) == ("shop", serving_profile.CLIENTS)
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        return Answers(0.1, np.ones(10), {200: 10, 503: 2})

    monkeypatch.setattr(serving_speed, "running", running)
    monkeypatch.setattr(serving_speed, "requests", lambda _: [])
    monkeypatch.setattr(load, "closed", closed)
    chosen = config.load("demo", [f"store={tmp_path}"])
    figures, profile, raw = serving_profile.measure(chosen, Path("jobs/shop.py"), [], quick=True)
    values = {name.removeprefix("demo.serving.profile."): each["value"] for name, each in figures.items()}
    assert 9.5 <= values.pop("cpu.ms") < 50
    assert values == {"per_s": 100, "failed": 2}
    assert profile["processes"][cpu_time.LOAD]["share"] == 1
    assert raw == {}
    assert profile.keys().isdisjoint(serving_profile.MODES)
    (sentence,) = profile["left_out"]
    assert "stacks are left out" in sentence
    page = benchmark.page({**benchmark.envelope("serving", figures, quick=True), "profile": profile})
    assert cpu_time.LOAD in page
    assert sentence in page


def test_the_page_shows_the_shares_of_a_profile() -> None:
    found = stacks.shares(stacks.read("".join(f"{stack} 5\n" for stack in SAMPLE)))
    profile = {"processes": {"raylet": {"cpu_ms": 0.25, "share": 1.0}}, "gil": found, "left_out": []}
    page = benchmark.page({**benchmark.envelope("serving", {}, quick=True), "profile": profile})
    assert "<td>raylet</td><td>0.25 ms</td><td>100.0%</td>" in page
    assert "<h2>gil: layers</h2>" in page
    assert "<td>psycopg.wait</td>" in page
