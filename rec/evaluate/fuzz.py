"""What the shop answers to wrong requests that are drawn at random: half by Schemathesis of the shop's OpenAPI
document, half by hypothesis (`rec.evaluate.fuzzed_requests`).

fuzz.requests              in all, and those of each; fewest: of the operation that got the fewest
fuzz.2xx, fuzz.4xx         answers
fuzz.refused               503 that says when to ask again (Retry-After): too much at once
fuzz.5xx                   any other answer of 500 or above
fuzz.undeclared            answers to Schemathesis of a status, content type or form that the document does not have
fuzz.unanswered            connections that ended without an answer, or had none within TIMEOUT_S
fuzz.slowest               longest time to an answer
fuzz.restarts              replicas that were there at the start and are not at the end
fuzz.tracebacks            in the shop's log

The shop has a store and Postgres of its own for that time, with the recipe's files and bundle: users are deleted and
events told there, and not in the recipe's. Seeds are fixed; what fails is kept as it was sent, to be sent again.
"""

import asyncio
import base64
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from rec import api_keys, assemble, postgres, processes, publish
from rec.config import Config
from rec.errors import ConfigError, RecError
from rec.evaluate import serving_speed
from rec.evaluate.benchmark import Figures, figure, refuse_others
from rec.evaluate.load import LATE, LOST

if TYPE_CHECKING:  # hypothesis is a library for tests, which a server does without
    from rec.evaluate.fuzzed_requests import Known, Sent

REQUESTS, QUICK_REQUESTS = 100_000, 2_000
CLIENTS = 8
"""Fewer than a replica takes at once: what is looked for is no flood."""
TIMEOUT_S = 30.0
DRAWN = 1_000
"""Requests of one seed."""
COVERING = 950
"""Requests, about, of Schemathesis that are the same for every seed: each limit of the document, and what is beyond."""
KEPT, KEPT_BYTES = 100, 2_000
"""Failing requests that are kept, and how much of their answers."""
REPLICA = "ray::ServeReplica:shop"
CONFORMANCE = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
"""Schemathesis' checks that an answer is one that the document has."""
TRACEBACK = "Traceback (most recent call last)"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What became of requests."""

    operations: Counter[str] = field(default_factory=Counter)
    """Requests by operation of the document."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by status, or LOST or LATE; without what was refused."""
    refused: int = 0
    slowest_s: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first KEPT of them."""
    undeclared: int = 0
    """Answers that the document does not have."""
    contradictions: list[dict[str, Any]] = field(default_factory=list)
    """The first KEPT of those."""

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.operations.total()

    def add(self, operation: str, status: int, seconds: float, *, retry: bool, kept: dict[str, Any]) -> None:
        """Count one; `retry`: the answer says when to ask again; `kept` is what to keep of one that failed."""
        self.operations[operation] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if status == 503 and retry:
            self.refused += 1
            return
        self.statuses[status] += 1
        if not 0 < status < 500 and len(self.failures) < KEPT:
            self.failures.append({"operation": operation, "status": status, **kept})

    def contradict(
        self, operation: str, status: int, failed: Sequence[Mapping[str, Any]], kept: dict[str, Any]
    ) -> None:
        """Count an answer that `failed` these of CONFORMANCE, beside what `add` counts of it."""
        self.undeclared += 1
        if len(self.contradictions) < KEPT:
            said = {each["name"]: each["failure_info"]["failure"]["message"] for each in failed}
            self.contradictions.append({"operation": operation, "status": status, "undeclared": said, **kept})

    def of(self, hundred: int) -> int:
        """Answers whose status begins with a digit."""
        return sum(count for status, count in self.statuses.items() if status // 100 == hundred)


def measure(
    config: Config, shop: Path, arguments: Sequence[str], *, requests: int
) -> tuple[Figures, list[dict[str, Any]]]:
    """All figures of a recipe that is evaluated, and the requests and tracebacks that failed.

    `shop` is jobs/shop.py, `arguments` name the recipe to it. Raises ConfigError where Schemathesis or hypothesis is
    not installed, or keys, a rate or a database of others are set.
    """
    program = schemathesis()
    refuse_others("deletes users and tells events")
    access = api_keys.access()
    if access.keys or access.rate is not None:
        raise ConfigError(
            f"{api_keys.KEYS_VARIABLE} or {api_keys.RATE_VARIABLE} is set, and refuses what is to be tried: unset both"
        )
    with _store(config) as store, serving_speed.running(shop, [*arguments, "--set", f"store={store}"]) as address:
        url = address.removesuffix("/v1/recommend")
        before = _replicas(store)
        known, told = _known(url), Tally()  # users are deleted on the way
        _schemathesis(program, url, store, requests // 2, config.seed, told)
        by_schemathesis = told.requests
        _hypothesis(url, known, requests - by_schemathesis, config.seed, told)
        gone = before - _replicas(store)
        tracebacks = _tracebacks((store / "shop" / "serve.log").read_text(encoding="utf-8", errors="replace"))
        documented = _operations(_got(f"{url}/openapi.json"))
    found = {
        "requests": figure(told.requests, "requests"),
        "requests.schemathesis": figure(by_schemathesis, "requests"),
        "requests.hypothesis": figure(told.requests - by_schemathesis, "requests"),
        "requests.fewest": figure(min(told.operations[operation] for operation in documented), "requests"),
        "2xx": figure(told.of(2), "answers"),
        "4xx": figure(told.of(4), "answers"),
        "refused": figure(told.refused, "answers"),
        "5xx": figure(sum(count for status, count in told.statuses.items() if status >= 500), "answers", goal=0),
        "undeclared": figure(told.undeclared, "answers", goal=0),
        "unanswered": figure(told.statuses[LOST] + told.statuses[LATE], "requests", goal=0),
        "slowest": figure(round(told.slowest_s, 2), "s"),
        "restarts": figure(len(gone), "replicas", goal=0),
        "tracebacks": figure(len(tracebacks), "tracebacks", goal=0),
    }
    kept = [*told.failures, *told.contradictions, *({"traceback": each} for each in tracebacks[:KEPT])]
    return {f"fuzz.{name}": value for name, value in found.items()}, kept


def schemathesis() -> str:
    """The path of its program. Raises ConfigError where that, or hypothesis, is not installed."""
    program = shutil.which("schemathesis")
    if program is None:
        raise ConfigError(
            "schemathesis is not on the PATH: `pip install schemathesis`, in an environment of its own if need be"
        )
    if find_spec("hypothesis") is None:
        raise ConfigError("hypothesis is not installed: `pip install hypothesis`")
    return program


@contextmanager
def _store(config: Config) -> Iterator[Path]:
    """A store with the recipe's files and bundle, and a Postgres of its own; directly in the temporary folder: sockets
    need that."""
    made = assemble.create(config)
    store = Path(tempfile.mkdtemp(prefix="rec-fuzz-"))
    try:
        (store / config.name).symlink_to(config.root)
        (store / "bundles").symlink_to(made.path.parent)
        publish.activate(config.model_copy(update={"store": str(store)}), made.id, force=True)
        yield store
    finally:
        postgres.stop_embedded(store)
        shutil.rmtree(store)


def _replicas(store: Path) -> set[int]:
    return {found.pid for found in processes.titled(processes.marked(processes.SHOP, str(store)), REPLICA)}


def _got(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def _operations(document: Any) -> dict[str, bool]:
    """The operations of an OpenAPI document, and whether anything is told to them."""
    return {
        f"{method.upper()} {path}": bool(operation.get("parameters") or operation.get("requestBody"))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def _schemathesis(program: str, url: str, folder: Path, requests: int, seed: int, told: Tally) -> None:
    """Have Schemathesis ask about as many `requests`, and count them."""
    operations = _operations(_got(f"{url}/openapi.json"))
    each = max(5, (requests - COVERING) // sum(operations.values()))
    report = folder / "schemathesis.ndjson"
    command = [
        *(program, "run", f"{url}/openapi.json", "--phases", "coverage,fuzzing", "--max-examples", str(each)),
        *("--checks", ",".join(["not_a_server_error", *CONFORMANCE])),
        *("--seed", str(seed), "--workers", "2", "--request-timeout", str(TIMEOUT_S)),
        *("--no-shrink", "--continue-on-failure", "--suppress-health-check", "all", "--generation-database", "none"),
        *("--report", "ndjson", "--report-ndjson-path", str(report), "--output-sanitize", "false"),
        *("--warnings", "off", "--no-color"),
    ]
    log.info("%s", " ".join(command))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    if done.returncode not in (0, 1) or not report.is_file():  # 1: it found failures
        raise RecError(
            f"schemathesis ended with code {done.returncode}: {(done.stderr or done.stdout).strip()[-1_000:]}"
        )
    with report.open(encoding="utf-8") as lines:
        for line in lines:
            _reported(json.loads(line), told)
    report.unlink()


def _reported(event: dict[str, Any], told: Tally) -> None:
    """Count what one event of Schemathesis' report tells."""
    if "ScenarioFinished" not in event:
        return
    recorder = event["ScenarioFinished"]["recorder"]
    for case, interaction in recorder["interactions"].items():
        request, answer = interaction["request"], interaction["response"]
        kept = {"by": "schemathesis", "request": request}
        if answer is None:
            told.add(recorder["label"], LOST, 0.0, retry=False, kept=kept)
            continue
        kept["answer"] = answer
        told.add(
            recorder["label"],
            answer["status_code"],
            answer["elapsed"],
            retry="retry-after" in answer["headers"],
            kept=kept,
        )
        checks = recorder.get("checks", {}).get(case, [])
        failed = [each for each in checks if each["name"] in CONFORMANCE and each["status"] == "failure"]
        if failed:
            told.contradict(recorder["label"], answer["status_code"], failed, kept)


def _hypothesis(url: str, known: "Known", count: int, seed: int, told: Tally) -> None:
    """Send `count` drawn requests, and count what became of them."""
    from rec.evaluate import fuzzed_requests

    requests = fuzzed_requests.requests(known)
    while count > 0:
        drawn = fuzzed_requests.drawn(requests, min(count, DRAWN), seed)
        asyncio.run(_send(url, drawn, seed, told))
        log.info("seed %d: answers so far by status %s", seed, dict(sorted(told.statuses.items())))
        count -= len(drawn)
        seed += 1


def _known(url: str) -> "Known":
    from rec.evaluate.fuzzed_requests import Known

    facts, products = _got(f"{url}/v1/shop"), _got(f"{url}/v1/products?limit=100")
    return Known(
        [product["product_id"] for product in products["items"]],
        facts["categories"],
        [user["user_id"] for user in facts["users"]],
    )


async def _send(url: str, requests: Sequence["Sent"], seed: int, told: Tally) -> None:
    """Send requests by CLIENTS clients, each over a connection of its own, and count them."""
    waiting = enumerate(requests)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # one kept may be closed as it is used again
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:

        async def client() -> None:
            for number, sent in waiting:
                began = time.monotonic()
                status, retry, answer = await _asked(session, url, sent)
                kept = {
                    "by": "hypothesis",
                    "seed": seed,
                    "number": number,
                    "method": sent.method,
                    "target": sent.target,
                    "headers": sent.headers,
                    "body_base64": base64.b64encode(sent.body).decode(),
                    "answer": answer[:KEPT_BYTES].decode(errors="replace"),
                }
                told.add(sent.operation, status, time.monotonic() - began, retry=retry, kept=kept)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _asked(session: aiohttp.ClientSession, url: str, sent: "Sent") -> tuple[int, bool, bytes]:
    """Status, whether it says when to ask again, and body; LOST or LATE where none came."""
    target = URL(url + sent.target, encoded=True)
    headers = {name: value.encode("latin-1").decode("utf-8", "surrogateescape") for name, value in sent.headers.items()}
    try:
        async with session.request(
            sent.method,
            target,
            data=sent.body or None,
            headers=headers,
            skip_auto_headers=["Content-Type", "Accept", "Accept-Encoding"],
            allow_redirects=False,
        ) as answer:
            return answer.status, "Retry-After" in answer.headers, await answer.read()
    except TimeoutError:
        return LATE, False, b""
    except (aiohttp.ClientError, OSError) as error:
        return LOST, False, repr(error).encode()


def _tracebacks(said: str) -> list[str]:
    """Each traceback of a log, and what stands around it."""
    lines = said.splitlines()
    return ["\n".join(lines[max(0, at - 2) : at + 40]) for at, line in enumerate(lines) if TRACEBACK in line]
