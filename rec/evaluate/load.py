"""Load on an HTTP API: clients that each send their next request when the last one is answered."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

TIMEOUT_S = 30.0


@dataclass(slots=True)
class Answers:
    """What came back in a stretch of time."""

    seconds: float
    milliseconds: NDArray[np.float64]
    """float64[n] from the request to the whole answer, of answers with status 200."""
    statuses: Mapping[int, int]
    """How many answers by status; 0 is a connection that failed."""
    bodies: list[Any] = field(default_factory=list)
    """Some of the answers."""

    @property
    def per_second(self) -> float:
        """Answers with status 200 a second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds within which `share` percent are answered; nan where nothing is."""
        return float(np.percentile(self.milliseconds, share)) if len(self.milliseconds) else float("nan")


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
    headers = {"Content-Type": "application/json"}

    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def client(until: float) -> None:
            while time.perf_counter() < until:
                body = encoded[next(numbers) % len(encoded)]
                began = time.perf_counter()
                try:
                    async with session.post(url, data=body, headers=headers) as answer:
                        content, status = await answer.read(), answer.status
                except (aiohttp.ClientError, TimeoutError):
                    content, status = b"", 0
                statuses[status] = statuses.get(status, 0) + 1
                if status == 200:
                    spent.append(1e3 * (time.perf_counter() - began))
                    if len(kept) < keep:
                        kept.append(json.loads(content))

        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
        return Answers(time.perf_counter() - began, np.array(spent), statuses, kept)
