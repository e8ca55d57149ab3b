"""Callers who mean no good."""

import asyncio
import socket
import time
from collections import Counter

import httpx

from serve import problems
from tests.serve.conftest import Shop

FLOOD = 400
PATIENCE_S = 60.0


def dripped(shop: Shop, begun: bytes, drop: bytes) -> bytes:
    """The first 12 bytes of the answer to a request that has `begun` and never ends, but for a `drop` now and then."""
    address = httpx.URL(shop.url)
    deadline = time.monotonic() + PATIENCE_S
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(begun)
        connection.settimeout(0.5)
        while time.monotonic() < deadline:
            try:
                return connection.recv(12)
            except TimeoutError:
                connection.sendall(drop)
    raise AssertionError(f"after {PATIENCE_S:g} s the caller is still listened to")


def flooded(shop: Shop) -> None:
    """Asks FLOOD times at once: some are answered, the others are 503 with Retry-After; then all is as ever."""

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=shop.url, timeout=PATIENCE_S, limits=limits) as client:
            body = {"user_id": "u04", "k": 100}
            return await asyncio.gather(*(client.post("/v1/recommend", json=body) for _ in range(FLOOD)))

    answers = asyncio.run(ask())
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) <= {200, 503}, counts
    assert counts[200] > 0
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.headers.get("retry-after") for answer in refused} <= {str(problems.RETRY_S)}
    assert shop.recommend(user_id="u04", k=5)["items"]
