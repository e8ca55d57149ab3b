"""What killed enrichment jobs ask again: `jobs/enrich.py` against an endpoint that counts, killed and started again.

A kill is SIGKILL, at a random moment after a random number of further requests, to

    job      the driver alone; its Ray, with what is being asked, ends by itself within seconds
    actor    the Ray worker that asks; Ray starts another and repeats the batch
    ray      driver, GCS, raylet and all workers at once

and a job that was killed is started again at once. Counted is at the endpoint, by product text. A request for a text
whose earlier request was answered with an error is the client's own repetition. Of the others, a request for a text
that was requested before is

    in flight   if the client of the earlier request was killed before it could keep the answer: the request had arrived
                before its death, no response had been delivered to it more than COMMIT_S before, and the ledger did not
                hold the answer when the text was requested again. At most CONCURRENCY for each kill, since a client
                keeps an answer before it asks for the next.
    repeated    in all other cases

The death of a client is when its process is gone, which after the kill of a job alone is later than the kill.
"""

import math
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rec import artifact, dataset, postgres
from rec.config import Config, load
from rec.data import ingest
from rec.enrich import backfill, cache, engine
from rec.enrich.text import canonical
from rec.errors import EngineError
from rec.evaluate import counting
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.counting import Endpoint, Request
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary

KINDS = ("job", "actor", "ray")
CONCURRENCY = 4
MOST_REQUESTS = 12
"""Most requests between a start and a kill."""
COMMIT_S = 1.0
"""An answer that a client had for longer than this must be in the ledger; from the endpoint's last write on, and with
room for a loaded machine: `resume.unkept_ms` is the longest time that was seen."""
NOTICE_S = 1.0
"""By so much later than it was a death may be noticed; another job waits for an answer's lock, and may be quicker."""
WAIT_S = 300.0
"""Longest wait for the next request, on a loaded machine."""
_ASKER = "MapBatches(Ask)"
"""In the title of the worker that asks."""


@dataclass(slots=True)
class Kill:
    """One kill."""

    kind: str
    died: float = math.inf
    """When the process that asked was gone, on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How the requests for texts that had been requested before came about."""

    repeated: int
    in_flight: int
    retries: int
    unkept: int = 0
    """Of those in flight, answers that a client had been sent whole and died without keeping."""
    unkept_s: float = 0.0
    """Longest time that it had one."""


def judge(requests: Sequence[Request], kept: Mapping[str, float], kills: Sequence[Kill]) -> Asked:
    """Tell repeated calls from those that were in flight. `kept`: fence → when the ledger had the answer."""
    earlier: dict[str, list[Request]] = {}
    lost = Counter[int]()
    repeated = retries = held = 0
    unkept = 0.0
    for request in requests:
        before = earlier.setdefault(request.fence, [])
        answered = [one for one in before if one.status in (None, 200)]
        if answered:
            kill = _killed(answered[-1], request, kills)
            if kill is None or kept.get(request.fence, math.inf) < request.arrived or lost[kill] == CONCURRENCY:
                repeated += 1
            else:
                lost[kill] += 1
                had = kills[kill].died - (answered[-1].delivered or math.inf)
                held += had > 0
                unkept = max(unkept, had)
        elif before:
            retries += 1
        before.append(request)
    return Asked(repeated, lost.total(), retries, held, unkept)


def _killed(first: Request, again: Request, kills: Sequence[Kill]) -> int | None:
    """The kill whose client asked `first` and died before it could keep the answer; None where there is none."""
    latest = min((math.inf if first.delivered is None else first.delivered) + COMMIT_S, again.arrived + NOTICE_S)
    return next((number for number, kill in enumerate(kills) if first.arrived <= kill.died <= latest), None)


@dataclass(slots=True)
class Shop:
    """A store, and the jobs on it."""

    config: Config
    job: Path
    """`jobs/enrich.py`."""
    overrides: list[str]
    log: Path
    kills: list[Kill] = field(default_factory=list)
    _touched: list[psutil.Process] = field(default_factory=list)
    """What belonged to a job when it was killed."""

    def start(self) -> psutil.Popen:
        """Start the job as a user does, in a session of its own."""
        sets = [part for one in self.overrides for part in ("--set", one)]
        command = [sys.executable, str(self.job), "--recipe", "demo", *sets]
        with self.log.open("ab") as log:
            return psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def finish(self, running: psutil.Popen) -> None:
        """Wait for a job's end."""
        if running.wait():
            raise EngineError(f"a job ended by itself: {self._told()}")

    def strike(self, running: psutil.Popen, kind: str) -> psutil.Popen:
        """Kill, and start the job again where it is gone. Returns the job that runs then."""
        tree = running.children(recursive=True)
        askers = [process for process in tree if _asks(process)]
        self._touched += tree
        kill = Kill(kind)
        self.kills.append(kill)
        victims = {"job": [running], "actor": askers, "ray": [running, *tree]}[kind]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none sees another one die
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.send_signal(number)
        watch = threading.Thread(target=_watch, args=(kill, askers), daemon=True)
        watch.start()
        if kind == "actor":
            watch.join()
            return running
        running.wait()
        return self.start()

    def wait_for(self, running: psutil.Popen, endpoint: Endpoint, more: int) -> None:
        """Until `more` requests have arrived since now, and the job has a worker that asks."""
        until = time.monotonic() + WAIT_S
        enough = len(endpoint.requests) + more
        while len(endpoint.requests) < enough or not any(map(_asks, running.children(recursive=True))):
            if running.poll() is not None:
                raise EngineError(f"the job ended before its kill: {self._told()}")
            if time.monotonic() > until:
                raise EngineError(f"nothing was asked for {WAIT_S:.0f} s: {self._told()}")
            time.sleep(0.01)

    def kept(self) -> tuple[dict[str, float], int]:
        """Fence → when the ledger had the answer, on the monotonic clock; and how many entries are one too many."""
        enrich = self.config.enrich
        now = backfill.edition(engine.form(enrich), StdVocabulary.load(None))
        fences = {}
        for row in dataset.read(self.config.at("products"), PRODUCTS).to_pylist():
            text = canonical(row, enrich.max_text_chars)
            fences[now.key(text.content_hash, enrich.model)] = text.fence
        with postgres.connect(postgres.url(self.config.store), autocommit=True) as connection:
            calls = cache.called(connection)
        ahead = time.time() - time.monotonic()
        first: dict[str, float] = {}
        for call in calls:
            first.setdefault(fences[call.key], call.at.timestamp() - ahead)
        return first, len(calls) - len(first)

    def content_hash(self) -> str:
        """Of what the job made."""
        made = artifact.peek(self.config.at("enriched"))
        assert made is not None
        return made.content_hash

    def clear(self) -> None:
        """End what a killed job left running."""
        for process in self._touched:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _told(self) -> str:
        return " ".join(self.log.read_text(errors="replace").split())[-600:]


def measure(job: Path, stores: Sequence[Path], products: int, kills: int, seed: int) -> Figures:
    """Figures of `kills` kills of the jobs on one of two empty stores; the other is for an undisturbed job."""
    drawn = random.Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
    drawn.shuffle(kinds)
    with counting.endpoint() as endpoint:
        undisturbed = _shop(job, stores[0], endpoint, products)
        undisturbed.finish(undisturbed.start())
    with counting.endpoint() as endpoint:
        disturbed = _shop(job, stores[1], endpoint, products)
        with _cleared(disturbed):
            running = disturbed.start()
            for kind in kinds:
                disturbed.wait_for(running, endpoint, drawn.randint(1, MOST_REQUESTS))
                time.sleep(drawn.uniform(0, counting.DELAYS_S[1]))
                running = disturbed.strike(running, kind)
            disturbed.finish(running)
        kept, paid_twice = disturbed.kept()
        asked = judge(endpoint.requests, kept, disturbed.kills)
    same = disturbed.content_hash() == undisturbed.content_hash()
    return {
        "resume.repeated_calls": figure(asked.repeated, "calls", goal=0),
        "resume.paid_twice": figure(paid_twice, "calls", goal=0),
        "resume.asked_again_in_flight": figure(asked.in_flight, "calls"),
        "resume.delivered_unkept": figure(asked.unkept, "calls"),
        "resume.unkept_ms": figure(round(max(asked.unkept_s, 0.0) * 1e3, 1), "ms"),
        "resume.requests": figure(len(endpoint.requests), "calls"),
        "resume.retries": figure(asked.retries, "calls"),
        "resume.products": figure(len(kept), "products"),
        "resume.identical": figure(int(same), "yes", goal=1),
        **{f"resume.kills.{kind}": figure(kinds.count(kind), "kills") for kind in KINDS},
        "resume.kills": figure(kills, "kills"),
    }


@contextmanager
def _cleared(shop: Shop) -> Iterator[None]:
    try:
        yield
    finally:
        shop.clear()


def _shop(job: Path, store: Path, endpoint: Endpoint, products: int) -> Shop:
    """A store with products of the sample catalogue, and the options of the jobs on it."""
    overrides = [
        f"store={store}",
        f"source.limit={products}",
        "enrich.answers=[]",
        f"enrich.max_calls={products}",
        "enrich.engine=openai",
        "enrich.model=counted",
        f"enrich.base_url={endpoint.url}",
        f"enrich.concurrency={CONCURRENCY}",
    ]
    config = load("demo", overrides)
    ingest.run(config)
    postgres.url(store)  # started here, it is no child of a job that will be killed
    return Shop(config, job, overrides, store / "jobs.log")


def _asks(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return _ASKER in " ".join(process.cmdline())
    return False


def _watch(kill: Kill, askers: Sequence[psutil.Process]) -> None:
    while any(map(_alive, askers)):
        time.sleep(0.005)
    kill.died = time.monotonic()


def _alive(process: psutil.Process) -> bool:
    """Whether a process may still do something; one that waits for its parent's notice may not."""
    with suppress(psutil.NoSuchProcess):
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
