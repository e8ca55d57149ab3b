"""What becomes of a shop under load when its parts are killed, its bundles change, and nothing happens for long.

WAY.rate                   requests a second; WAY: apart, the graph, or whole, the shop in one process
apart.VICTIM.*             killed: ingress, user_tower, retriever, ranker, proxy (what listens), postgres
whole.VICTIM.*             killed: server, proxy, postgres
WAY.postgres_frozen.*      SIGSTOP, and SIGCONT after FROZEN_S seconds
    .answers               of all statuses, and none where the connection was taken
    .failed                neither 200 nor a 503 that says when to ask again, or none in time
    .lost                  connections that ended without an answer, as those to a process that is killed do; where
                           none of CARRIERS was, nobody's is to end so
    .unreached             connections that nobody took, not among the answers: a load balancer would try another node
    .refused, .degraded    503; 200 from a lower rung of the ladder
    .degraded.CODE         200 that says so with this code
    .late                  200 or 503 more than SLACK_S seconds after it was due
    .slowest_s             200 or 503 that took longest
    .done                  0: nothing was harmed, as the answers at this rate were not whole before it
    .recovery_s            from the kill, or from SIGCONT, to the first request of SETTLED_S seconds that are answered
                           whole and not late; none where that takes over LONG_S
switch.*, apart.switch.*   the active bundle changes every SWITCH_S seconds, by promotion and rollback in turn
    .failed                not 200
    .mixed                 whole, and not the list that the bundle which it names gives when asked in peace
soak.*                     a steady rate for long, of the shop in one process: p99 of each PART_S seconds and the memory
                           of the shop's processes, each with its slope, and its interval, over what follows the first
                           tenth; memory.KIND.grown: of each kind of process from the first two of these minutes
                           to the last two; new_processes: what was not
                           there when it began

The active bundle is in the end the one that it was; its promotions stand in the database's history, so that
`bundles.py rollback` then goes to the other one. A killed Postgres is started again at once, as whoever runs it would;
all else comes back by itself. Requests are those of `rec.evaluate.serving_speed`.
"""

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from rec import haproxy, postgres, processes, publish
from rec.config import Config
from rec.errors import RecError
from rec.evaluate import cpu_time, load, serving_speed
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval
from rec.evaluate.load import Asked, Paced
from rec.evaluate.serving_profile import REPLICA


@dataclass(frozen=True, slots=True)
class Way:
    """How the shop runs."""

    how: tuple[str, ...]
    """Arguments of jobs/shop.py."""
    victims: Mapping[str, str]
    """What is killed of it beside the proxy, and how the titles of its processes begin."""
    prefix: str
    """Of the names of what happens to all of it."""
    soaked: bool


WAYS = {
    "apart": Way(
        ("--apart",),
        {
            "ingress": REPLICA,
            "user_tower": "ray::ServeReplica:shop:UserTower",
            "retriever": "ray::ServeReplica:shop:Retriever",
            "ranker": "ray::ServeReplica:shop:Ranker",
        },
        "apart.",
        soaked=False,
    ),
    "whole": Way((), {"server": REPLICA}, "", soaked=True),
}
SERVE_PROXY = "ray::ProxyActor"
CARRIERS = {"ingress", "server", "proxy"}
"""Through whose hands the callers' connections go."""
SETTLED_S, PATIENCE_S, LONG_S = 3.0, 1.0, 180.0
FROZEN_S = 8.0
"""Longer than an answer may take: what was asked first is due while Postgres still says nothing."""
DEADLINE_S, SLACK_S = 5.0, 1.0
"""When an answer is due (`serve.fallible`), and what it may take beside that: a proxy's queue, the work without stages
that are late."""
SWITCHES, SWITCH_S = 10, 3.0
COMPARED = 40
"""Requests whose lists are known for both bundles."""
PART_S = 10.0
BLOCK = 12
"""Parts, two minutes of them, that a bootstrap of slopes keeps together."""

log = logging.getLogger(__name__)

Fault = Callable[[], float]
"""Does harm; returns the `time.monotonic()` from which on the shop can recover."""
Floats = NDArray[np.float64]


def measure(
    config: Config,
    shop: Path,
    arguments: Sequence[str],
    other: str,
    *,
    rates: Mapping[str, float],
    minutes: float,
    proxy: str | None = None,
) -> tuple[Figures, dict[str, Any]]:
    """All figures of a recipe whose bundle is promoted, the proxy's name and the soak's curves.

    `shop` is jobs/shop.py, `arguments` name the recipe to it; `other` is another bundle of it. `rates`: requests a
    second of those WAYS that are drilled; `proxy`: as `haproxy.chosen` has it. Raises RecError where a shop does not
    come back.
    """
    bodies = serving_speed.requests(config)
    store = Path(config.store).resolve()
    program = haproxy.chosen(proxy)
    proxy = haproxy.SERVE if program is None else haproxy.HAPROXY
    figures: Figures = {}
    curves: dict[str, Any] = {}
    for name, rate in rates.items():
        way = WAYS[name]
        figures[f"{name}.rate"] = figure(rate, "requests/s")
        with serving_speed.running(shop, arguments, *way.how, "--proxy", proxy) as url:
            for fault, harm in _faults(way, store, program or SERVE_PROXY).items():
                figures |= _drilled(f"{name}.{fault}", url, bodies, rate, harm)
            switched = _switched(config, url, bodies[:COMPARED], rate, other)
            figures |= {f"{way.prefix}{each}": value for each, value in switched.items()}
            if way.soaked:
                soaked, curves = _soaked(store, url, bodies, rate, minutes, config)
                figures |= soaked
    told = {f"{config.name}.drills.{name}": value for name, value in figures.items()}
    return told, {"proxy": proxy, "curves": curves}


def _faults(way: Way, store: Path, proxy: str) -> dict[str, Fault]:
    """By name, each of what is done to the shop; `proxy`: how the title of its process begins."""
    killed = {**way.victims, "proxy": proxy}
    faults: dict[str, Fault] = {victim: partial(_kill, store, title) for victim, title in killed.items()}
    if postgres.given() is None:
        faults |= {"postgres": partial(_kill_postgres, store), "postgres_frozen": partial(_freeze_postgres, store)}
    return faults


def _kill(store: Path, title: str) -> float:
    """SIGKILL the shop's processes of a title."""
    victims = processes.titled(processes.marked(processes.SHOP, str(store)), title)
    if not victims:
        raise RecError(f"no process of the shop of {store} has a title that begins with {title!r}")
    struck = time.monotonic()
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    return struck


def _kill_postgres(store: Path) -> float:
    """SIGKILL its first process; what comes up again recovers from its log."""
    server, struck = _postgres(store), time.monotonic()
    server.send_signal(signal.SIGKILL)
    server.wait(LONG_S)
    postgres.url(store)
    return struck


def _freeze_postgres(store: Path) -> float:
    """SIGSTOP all its processes, the first one first, which then starts no others; SIGCONT after FROZEN_S."""
    server = _postgres(store)
    frozen = [server]
    try:
        server.suspend()
        frozen += server.children(recursive=True)
        for process in frozen[1:]:
            with suppress(psutil.NoSuchProcess):  # its client has just left
                process.suspend()
        time.sleep(FROZEN_S)
    finally:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    return time.monotonic()


def _postgres(store: Path) -> psutil.Process:
    """The first process of the embedded server. Raises RecError where none runs."""
    server = postgres.server(store)
    if server is None:
        raise RecError(f"no Postgres of {store} runs: there is nothing to kill or to freeze")
    return server


def _drilled(name: str, url: str, bodies: Sequence[Mapping[str, Any]], rate: float, harm: Fault) -> Figures:
    """Figures of one fault; nothing is harmed where the answers are not whole before it."""
    log.info("%s", name)
    with Paced(url, bodies, rate=rate) as asked:
        if not _gets_whole(asked, time.monotonic()):
            log.warning(
                "%s: not done: %g requests a second are not answered whole before it, for %g s; ask for less (--rate, "
                "--apart-rate)",
                name,
                rate,
                LONG_S,
            )
            return {f"{name}.done": figure(0, "faults", goal=1)}
        struck = harm()
        if _gets_whole(asked, struck):
            time.sleep(SETTLED_S)
    back = recovered(asked.answers, struck)  # of all answers, the late ones too
    if back is None:
        log.warning("%s: within %g s the answers to %g requests a second were not whole", name, LONG_S, rate)
    reached = [answer for answer in asked.answers if answer.status != load.UNREACHED]
    told = [answer for answer in reached if answer.status == 200]
    refused = [answer for answer in reached if answer.status == 503 and answer.retry]
    declared = [*told, *refused]
    others = Counter(answer.status for answer in reached) - Counter(answer.status for answer in declared)
    if others:
        log.warning("%s: neither lists nor refusals that say when to ask again, by status: %s", name, dict(others))
    lost = others[load.LOST]
    codes = Counter(code for answer in told for code in answer.body["degraded"])
    return {
        f"{name}.done": figure(1, "faults", goal=1),
        f"{name}.answers": figure(len(reached), "answers"),
        f"{name}.failed": figure(others.total() - lost, "answers", goal=0),
        f"{name}.lost": figure(lost, "answers", goal=None if name.rpartition(".")[2] in CARRIERS else 0),
        f"{name}.unreached": figure(len(asked.answers) - len(reached), "connections"),
        f"{name}.refused": figure(len(refused), "answers"),
        f"{name}.degraded": figure(sum(not _whole(answer) for answer in told), "answers"),
        **{f"{name}.degraded.{code}": figure(count, "answers") for code, count in sorted(codes.items())},
        f"{name}.late": figure(sum(_late(answer) for answer in declared), "answers", goal=0),
        f"{name}.slowest_s": figure(
            round(max((answer.milliseconds for answer in declared), default=0.0) / 1e3, 3), "s"
        ),
        **({} if back is None else {f"{name}.recovery_s": figure(round(back, 1), "s")}),
    }


def _gets_whole(asked: Paced, since: float) -> bool:
    """Wait until SETTLED_S seconds of what was sent after `since` are answered whole and nobody waits; False where that
    takes over LONG_S."""
    while recovered(asked.answers, since) is None or asked.longest_wait_s > PATIENCE_S:
        if time.monotonic() - since > LONG_S:
            return False
        time.sleep(0.2)
    return True


def recovered(answers: Sequence[Asked], struck: float) -> float | None:
    """Seconds from `struck` until the first request of which on SETTLED_S seconds of requests are answered whole, and
    not late."""
    after = sorted((a for a in answers if a.sent >= struck), key=lambda a: a.sent)
    last = max((number for number, answer in enumerate(after) if not _whole(answer) or _late(answer)), default=-1)
    good = after[last + 1 :]
    if not good or good[-1].sent - good[0].sent < SETTLED_S:
        return None
    return good[0].sent - struck if last >= 0 else 0.0


def _whole(answer: Asked) -> bool:
    return answer.status == 200 and not answer.body["degraded"]


def _late(answer: Asked) -> bool:
    return answer.milliseconds > 1e3 * (DEADLINE_S + SLACK_S)


def _switched(config: Config, url: str, bodies: Sequence[Mapping[str, Any]], rate: float, other: str) -> Figures:
    """Change the active bundle under load; at the end it is the one that it was."""
    log.info("switch")
    name = _lists(url, bodies[:1])[0][0]
    asked_twice: dict[str, list[list[list[str]]]] = {name: [], other: []}
    try:
        for bundle in (name, other) * 2:
            _activate(config, url, bodies[0], bundle)
            asked_twice[bundle].append([products for _, products in _lists(url, bodies)])
        _activate(config, url, bodies[0], name)
        with Paced(url, bodies, rate=rate) as asked:
            for _ in range(SWITCHES // 2):
                time.sleep(SWITCH_S)
                publish.activate(config, other, force=True)
                time.sleep(SWITCH_S)
                publish.rollback(config)
            time.sleep(SWITCH_S)
    finally:
        publish.activate(config, name, force=True)
    told = [answer for answer in asked.answers if answer.status == 200]
    known = {bundle: first for bundle, (first, _) in asked_twice.items()}
    clear = {
        number
        for number in range(len(bodies))
        if all(first[number] == second[number] for first, second in asked_twice.values())
        and known[name][number] != known[other][number]
    }
    compared = [answer for answer in told if answer.number in clear and _whole(answer)]
    mixed = sum(_list(a.body)[1] != known[a.body["bundle"]][a.number] for a in compared)
    return {
        "switch.switches": figure(SWITCHES, "switches"),
        "switch.answers": figure(len(asked.answers), "answers"),
        "switch.of.other": figure(sum(a.body["bundle"] == other for a in told), "answers"),
        "switch.failed": figure(len(asked.answers) - len(told), "answers", goal=0),
        "switch.degraded": figure(sum(not _whole(a) for a in told), "answers"),
        "switch.compared": figure(len(compared), "answers"),
        "switch.mixed": figure(mixed, "answers", goal=0),
    }


def _activate(config: Config, url: str, body: Mapping[str, Any], name: str) -> None:
    """Make the bundle active and wait until it answers."""
    publish.activate(config, name, force=True)
    until = time.monotonic() + LONG_S
    while _lists(url, [body])[0][0] != name:
        if time.monotonic() > until:
            raise RecError(f"bundle {name} was promoted, and {LONG_S:.0f} s later the shop answers with another one")
        time.sleep(0.2)


def _lists(url: str, bodies: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Bundle and products of each answer, asked one by one."""
    return [_list(load.one(url, body)) for body in bodies]


def _list(body: Mapping[str, Any]) -> tuple[str, list[str]]:
    return body["bundle"], [item["product_id"] for item in body["items"]]


def _soaked(
    store: Path, url: str, bodies: Sequence[Mapping[str, Any]], rate: float, minutes: float, config: Config
) -> tuple[Figures, dict[str, Any]]:
    """Figures and curves of a steady load."""
    log.info("soak")
    memory: list[dict[str, float]] = []
    restarts: set[int] = set()
    first = {process.pid for process in processes.marked(processes.SHOP, str(store))}
    with Paced(url, bodies, rate=rate, keep=False) as asked:
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            time.sleep(max(0.0, began + PART_S * (len(memory) + 1) - time.monotonic()))
            family = processes.marked(processes.SHOP, str(store))
            restarts |= {process.pid for process in family} - first
            memory.append(_unique_mib(family))
    p99 = _p99(asked.answers, began, len(memory))
    by_kind = {kind: np.array([part.get(kind, 0.0) for part in memory]) for kind in sorted(set().union(*memory))}
    all_of_it = np.sum(list(by_kind.values()), axis=0)
    failed = sum(answer.status != 200 for answer in asked.answers)
    hours = PART_S * np.arange(len(memory)) / 3600
    kept = slice(len(memory) // 10, None)
    figures = {
        "soak.minutes": figure(minutes, "minutes"),
        "soak.per_s": figure(round(len(asked.answers) / (60 * minutes), 1), "requests/s"),
        "soak.failed": figure(failed, "answers", goal=0),
        "soak.new_processes": figure(len(restarts), "processes", goal=0),
        "soak.p99.ms": figure(round(float(np.median(p99[kept])), 1), "ms"),
        "soak.memory": figure(round(float(all_of_it[-1]), 1), "MiB"),
        "soak.p99.slope": _slope(hours[kept], p99[kept], "ms an hour", config),
        "soak.memory.slope": _slope(hours[kept], all_of_it[kept], "MiB an hour", config),
        **{
            f"soak.memory.{kind}.grown": figure(
                round(float(np.median(values[-BLOCK:]) - np.median(values[kept][:BLOCK])), 1), "MiB"
            )
            for kind, values in by_kind.items()
        },
    }
    at = (60 * hours).round(2).tolist()
    return figures, {
        "soak: p99 (ms) by minute": [at, p99.round(2).tolist()],
        "soak: memory (MiB) by minute": [at, all_of_it.round(1).tolist()],
    }


def _unique_mib(family: Iterable[psutil.Process]) -> dict[str, float]:
    """What would be free without them, by kind of process."""
    found: dict[str, float] = {}
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            kind = cpu_time.kind(process.cmdline())
            found[kind] = found.get(kind, 0.0) + process.memory_full_info().uss / 2**20
    return found


def _p99(answers: Sequence[Asked], began: float, parts: int) -> Floats:
    """float64[parts] milliseconds within which 99 % of a part's answers came."""
    part = ((np.array([a.sent for a in answers]) - began) // PART_S).astype(int)
    took = np.array([a.milliseconds for a in answers])
    return np.array([np.percentile(took[part == number], 99) for number in range(parts)])


def _slope(hours: Floats, values: Floats, unit: str, config: Config) -> dict[str, Any]:
    """Least squares, and its interval by a bootstrap of BLOCK residuals at a time: one part is much as the last one."""
    rng = np.random.default_rng(config.seed)
    line = np.polyfit(hours, values, 1)
    rest, count = values - np.polyval(line, hours), len(values)
    block = min(BLOCK, max(1, count // 4))
    starts = rng.integers(0, count - block + 1, (config.evaluate.bootstrap, -(-count // block)))
    drawn = rest[
        (starts[..., None] + np.arange(block)).reshape(len(starts), -1)[:, :count]
    ]  # float64[resamples, parts]
    slopes = line[0] + np.polyfit(hours, drawn.T, 1)[0]
    bounds = interval(slopes[:, None])[:, 0].round(2).tolist()
    return figure(round(float(line[0]), 2), unit, bounds)
