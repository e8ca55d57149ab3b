"""Callers who mean no good."""

import asyncio
import socket
import time
from collections import Counter
from contextlib import ExitStack

import httpx

from serve import api, problems
from tests.serve.conftest import Shop

FLOOD = 400
PATIENCE_S = 60.0
SOON_S = 10.0
UNREAD = 40
"""More than a replica of the ingress answers at once."""
LARGE, HOARDER = 3 * 2**20, "hoarder"


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
    assert {answer.headers.get("retry-after") for answer in refused} == {str(problems.RETRY_S)}
    assert shop.recommend(user_id="u04", k=5)["items"]


def unread(shop: Shop) -> None:
    """Asks UNREAD times for megabytes and reads of each the first bytes alone: meanwhile others are answered soon."""
    for post in range(60):
        told = {"user_id": HOARDER, "product_id": "P0003", "context": "x" * 450}
        events = [told | {"event_id": f"{HOARDER}-{post}-{number}"} for number in range(api.MAX_EVENTS)]
        assert shop.client.post("/v1/events", json={"events": events}).status_code == 200
    assert len(shop.client.get(f"/v1/users/{HOARDER}").content) > LARGE
    address = httpx.URL(shop.url)
    begun = f"GET /v1/users/{HOARDER} HTTP/1.1\r\nhost: {address.host}\r\n\r\n".encode()
    with ExitStack() as callers:
        for _ in range(UNREAD):  # one after the other: it is no flood
            connection = callers.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # nor is the rest read by the kernel
            connection.settimeout(PATIENCE_S)
            connection.connect((address.host, address.port))
            connection.sendall(begun)
            assert connection.recv(12) == b"HTTP/1.1 200"
        for _ in range(5):
            answer = shop.client.post("/v1/recommend", json={"user_id": "u04", "k": 5}, timeout=SOON_S)
            assert answer.status_code == 200, answer.text
            assert answer.json()["items"]
    assert shop.client.delete(f"/v1/users/{HOARDER}").json()["live_events"] == 60 * api.MAX_EVENTS
