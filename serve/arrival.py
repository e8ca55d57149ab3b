"""What a request has waited before it reached its server, which the shop's HAProxy tells, is taken off its time.

A queue before a server is bounded by a number, and where the server gets slower its wait grows: all would still be
answered, each too late for whoever asked. An answer that would begin with hardly any time left is refused instead
(`serve/answering.py`), which leaves the time to the others. Nothing else is refused for its age: an event that is may
be lost.
"""

import os
import time
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rec.haproxy import PROGRAM
from serve.fallible import DEADLINE_S

ARRIVED = "x-rec-arrived"
"""Microseconds since 1970 by this machine's clock. `serve/haproxy` puts it in the place of a caller's; without it this
is what a caller says, if anything, and passed over. Who asks a replica behind it directly is believed, of his own."""

_waited: ContextVar[float] = ContextVar("waited", default=0.0)


def waited() -> float:
    """Seconds that the request at hand had waited when this server took it, as far as that is known."""
    return _waited.get()


def due(patience: float = DEADLINE_S) -> float:
    """When the answer to the request at hand is due, monotonic seconds: `patience` after it came, beside what its body
    took, which is its caller's time."""
    return time.monotonic() + patience - waited()


class Arrival:
    """ASGI middleware: notes what a request has waited, where the shop's own HAProxy stands before this server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._told = bool(os.environ.get(PROGRAM))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http" or not self._told:
            await self._app(scope, receive, send)
            return
        token = _waited.set(_since(Headers(scope=scope).get(ARRIVED, "")))
        try:
            await self._app(scope, receive, send)
        finally:
            _waited.reset(token)


def _since(arrived: str) -> float:
    """Seconds since then; 0 for what is no time, or one to come."""
    if not (arrived.isascii() and arrived.isdigit() and len(arrived) < 20):
        return 0.0
    return max(0.0, time.time() - int(arrived) / 1e6)
