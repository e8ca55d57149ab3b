"""How fast the shop answers POST /v1/recommend, and the same chain in one process beside it.

one.p50.ms, one.p99.ms     one client that waits for each answer
one.STAGE.ms               median of what the answers say of a stage
N.per_s, N.p99.ms          N clients at once
sustained.per_s            the most answers a second with 99 % of them within BOUND_MS
apart.*                    with a process for each stage, as on a cluster (`shop.py start --apart --proxy serve`)
serve.*                    the shop behind Serve's own proxy (`shop.py start --proxy serve`) in place of HAProxy
fused.*                    `serve.fused`: one process of FastAPI and uvicorn, the same bundle and Postgres
over.fused                 answers a second over those of fused with as many clients, the median over their numbers;
                           fused is asked beside each server, in turn, as a machine is not always as fast
failed                     answers other than 200 of all

Client, server and Postgres share the machine. Requests are of the recipe's own shoppers, a fifth of them anonymous with
the last products of one; none has a context, whose text costs a text encoder's time.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rec import dataset, histories
from rec.config import Config
from rec.errors import RecError
from rec.evaluate import load
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.load import Answers
from rec.ports import free
from rec.schema import PRODUCTS

REQUESTS = 2_000
ANONYMOUS = 0.2
CLIENTS, QUICK_CLIENTS = (1, 2, 4, 8, 16, 32), (1, 4)
SECONDS, QUICK_SECONDS = 10.0, 3.0
BOUND_MS = 100.0
P50_GOAL_MS, P99_GOAL_MS, RATE_GOAL, FUSED_GOAL = 10.0, 25.0, 180.0, 0.8
START_S = 300.0
K = 10
FUSED = "fused."


def measure(config: Config, shop: Path, arguments: Sequence[str], *, quick: bool) -> Figures:
    """All figures of a recipe whose bundle is promoted; `shop` is jobs/shop.py, `arguments` name the recipe to it.

    Raises RecError where a server does not start.
    """
    bodies = requests(config)
    figures: Figures = {}
    failures = 0
    servers = {
        "serve.": running(shop, arguments, "--proxy", "serve"),
        "apart.": running(shop, arguments, "--apart", "--proxy", "serve"),
        "": running(shop, arguments),
    }
    for prefix, server in servers.items():
        with server as url, fused(config, shop.parent.parent) as beside:
            levels = _levels({prefix: url, FUSED: beside}, bodies, quick=quick)
        for name, found in levels.items():
            figures |= _figures(name, found)  # of the process beside, in the end as it was beside the shop
            failures += sum(sum(answers.statuses.values()) - len(answers.milliseconds) for answers in found.values())
        ratios = [levels[prefix][n].per_second / levels[FUSED][n].per_second for n in levels[prefix]]
        goal = None if prefix else FUSED_GOAL
        figures[f"{prefix}over.fused"] = figure(round(float(np.median(ratios)), 3), "times", goal=goal)
    figures["failed"] = figure(failures, "answers", goal=0)
    return {f"{config.name}.serving.{name}": value for name, value in figures.items()}


def requests(config: Config) -> list[dict[str, Any]]:
    """Bodies of requests, drawn by seed from the users who have events."""
    h = histories.load(config.root)
    ids = dataset.read(config.at("products"), PRODUCTS, ["product_id"])["product_id"].to_pylist()
    rng = np.random.default_rng(config.seed)
    users = rng.choice(np.flatnonzero(np.diff(h.offsets) > 0), REQUESTS)
    made: list[dict[str, Any]] = []
    for user, anonymous in zip(users.tolist(), rng.random(REQUESTS) < ANONYMOUS, strict=True):
        if anonymous:
            last = h.items[h.offsets[user] : h.offsets[user + 1]][-3:]
            made.append({"history": [ids[row] for row in last], "k": K})
        else:
            made.append({"user_id": h.user_ids[user], "k": K})
    return made


def _levels(urls: Mapping[str, str], bodies: Sequence[dict[str, Any]], *, quick: bool) -> dict[str, dict[int, Answers]]:
    """Answers of each server by how many clients ask at once; servers are asked in turn."""
    seconds = QUICK_SECONDS if quick else SECONDS
    for url in urls.values():
        load.closed(url, bodies, clients=2, seconds=seconds / 3)  # warm: not counted
    found: dict[str, dict[int, Answers]] = {name: {} for name in urls}
    for clients in QUICK_CLIENTS if quick else CLIENTS:
        for name, url in urls.items():
            found[name][clients] = load.closed(
                url, bodies, clients=clients, seconds=seconds, keep=500 if clients == 1 else 0
            )
    return found


def _figures(prefix: str, levels: Mapping[int, Answers]) -> Figures:
    """Figures of one server."""
    figures: Figures = {}
    for clients, answers in levels.items():
        if clients == 1:
            figures["one.p50.ms"] = figure(round(answers.percentile(50), 2), "ms", goal=P50_GOAL_MS)
            figures["one.p99.ms"] = figure(round(answers.percentile(99), 2), "ms", goal=P99_GOAL_MS)
            for stage in answers.bodies[0]["milliseconds"]:
                median = float(np.median([body["milliseconds"][stage] for body in answers.bodies]))
                figures[f"one.{stage}.ms"] = figure(round(median, 2), "ms")
        figures[f"{clients}.per_s"] = figure(round(answers.per_second, 1), "requests/s")
        figures[f"{clients}.p99.ms"] = figure(round(answers.percentile(99), 1), "ms")
    bounded = [answers.per_second for answers in levels.values() if answers.percentile(99) < BOUND_MS]
    figures["sustained.per_s"] = figure(round(max(bounded, default=0.0), 1), "requests/s", goal=RATE_GOAL)
    return {f"{prefix}{name}": value for name, value in figures.items()}


@contextmanager
def running(
    job: Path, arguments: Sequence[str], *how: str, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """The shop, started and stopped by jobs/shop.py; `environment`: what it is started with beside this process's."""
    port = str(free())
    _run([sys.executable, str(job), "start", *arguments, "--port", port, *how], environment)
    try:
        yield f"http://127.0.0.1:{port}/v1/recommend"
    finally:
        _run([sys.executable, str(job), "stop", *arguments])


def _run(command: list[str], environment: Mapping[str, str] = MappingProxyType({})) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise RecError(f"{' '.join(command[1:3])} failed: {done.stderr.strip()[-1_000:]}")


@contextmanager
def fused(config: Config, checkout: Path) -> Iterator[str]:
    """`serve.fused` under uvicorn."""
    port = free()
    command = [sys.executable, "-m", "uvicorn", "--factory", "serve.fused:create", "--port", str(port)]
    environment = os.environ | {"REC_STORE": str(Path(config.store).resolve()), "PYTHONPATH": str(checkout)}
    process = subprocess.Popen([*command, "--log-level", "warning", "--no-access-log"], env=environment, cwd=checkout)
    try:
        _await(f"http://127.0.0.1:{port}/openapi.json", process)
        yield f"http://127.0.0.1:{port}/v1/recommend"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RecError(f"serve.fused ended with code {process.returncode} while starting")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RecError(f"serve.fused did not answer within {START_S:.0f} s")
