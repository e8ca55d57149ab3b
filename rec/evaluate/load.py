"""Load on an HTTP API: clients that each send their next request when the last one is answered."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Thread
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from numpy.typing import NDArray

from rec.errors import RecError

TIMEOUT_S = 30.0
LOST, LATE, GARBLED, UNREACHED = 0, -1, -2, -3
"""In place of a status: the connection ended, nothing came within TIMEOUT_S, a body of status 200 is no JSON, nobody
listened. Only who was not reached can be asked again elsewhere without harm, as a load balancer does."""


@dataclass(slots=True)
class Answers:
    """What came back in a stretch of time."""

    seconds: float
    milliseconds: NDArray[np.float64]
    """float64[n] from the request to the whole answer, of answers with status 200."""
    statuses: Mapping[int, int]
    """How many answers by status, or what stands in place of one."""
    bodies: list[Any] = field(default_factory=list)
    """Some of the answers."""

    @property
    def per_second(self) -> float:
        """Answers with status 200 a second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds within which `share` percent are answered; nan where nothing is."""
        return float(np.percentile(self.milliseconds, share)) if len(self.milliseconds) else float("nan")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of `Paced`."""

    number: int
    """Which of the requests."""
    sent: float
    """`time.monotonic()`"""
    milliseconds: float
    """Until the whole answer had come, or none was to come."""
    status: int
    """Or LOST, LATE, GARBLED, UNREACHED."""
    body: Any
    """Of an answer with status 200, where bodies are kept."""
    retry: bool = False
    """Whether it says when to ask again."""


class _Told(NamedTuple):
    """What came back of one request."""

    status: int
    body: bytes = b""
    retry: bool = False


class Paced:
    """Requests at a steady rate, whether or not the answers come, as long as the block runs; in a thread of its own."""

    def __init__(self, url: str, requests: Sequence[Mapping[str, Any]], *, rate: float, keep: bool = True) -> None:
        """`rate`: requests a second; `keep`: whether bodies are kept."""
        self._url, self._rate, self._keep = url, rate, keep
        self._encoded = [json.dumps(request).encode() for request in requests]
        self._ended = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.answers: list[Asked] = []
        """In the order in which they came; grows while the block runs."""
        self._pending: dict[int, float] = {}

    @property
    def longest_wait_s(self) -> float:
        """How long the oldest request without an answer has been waiting."""
        now = time.monotonic()
        return max((now - sent for sent in list(self._pending.values())), default=0.0)

    def __enter__(self) -> "Paced":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when all that was sent is answered or given up."""
        self._ended.set()
        self._thread.join()

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        waiting: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            began = time.monotonic()
            for number in count():
                await asyncio.sleep(max(0.0, began + number / self._rate - time.monotonic()))
                if self._ended.is_set():
                    break
                task = asyncio.create_task(self._ask(session, number))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            await asyncio.gather(*waiting)

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        which = number % len(self._encoded)
        self._pending[number] = sent = time.monotonic()
        status, body, retry = await _post(session, self._url, self._encoded[which])
        took = 1e3 * (time.monotonic() - sent)
        told = None
        if status == 200:
            try:
                told = json.loads(body)
            except ValueError:
                status = GARBLED
        self.answers.append(Asked(which, sent, took, status, told if self._keep else None, retry))
        del self._pending[number]


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> _Told:
    """LOST, LATE or UNREACHED where no answer came."""
    try:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            return _Told(answer.status, await answer.read(), "Retry-After" in answer.headers)
    except TimeoutError:
        return _Told(LATE)
    except aiohttp.ClientConnectorError as error:
        return _Told(UNREACHED if isinstance(error.os_error, ConnectionRefusedError) else LOST)
    except (aiohttp.ClientError, OSError):
        return _Told(LOST)


def one(url: str, request: Mapping[str, Any]) -> Any:
    """The body of the answer to one request. Raises RecError where its status is not 200."""

    async def ask() -> _Told:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            return await _post(session, url, json.dumps(request).encode())

    status, body, _ = asyncio.run(ask())
    if status == UNREACHED:
        raise RecError(f"nobody listens at {url}")
    if status != 200:
        raise RecError(f"{url} answers a request with status {status}: {body[:200].decode(errors='replace')}")
    return json.loads(body)


def closed(url: str, requests: Sequence[Mapping[str, Any]], *, clients: int, seconds: float, keep: int = 0) -> Answers:
    """Send `requests`, one after the other and again from the start, by `clients` clients for `seconds`."""
    return asyncio.run(_closed(url, requests, clients, seconds, keep))


async def _closed(url: str, requests: Sequence[Mapping[str, Any]], clients: int, seconds: float, keep: int) -> Answers:
    encoded = [json.dumps(request).encode() for request in requests]
    numbers = count()
    spent: list[float] = []
    statuses: dict[int, int] = {}
    kept: list[Any] = []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)

    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def client(until: float) -> None:
            while time.perf_counter() < until:
                body = encoded[next(numbers) % len(encoded)]
                began = time.perf_counter()
                status, content, _ = await _post(session, url, body)
                statuses[status] = statuses.get(status, 0) + 1
                if status == 200:
                    spent.append(1e3 * (time.perf_counter() - began))
                    if len(kept) < keep:
                        kept.append(json.loads(content))

        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
        return Answers(time.perf_counter() - began, np.array(spent), statuses, kept)
