"""What a request has waited before it reached its server, which the shop's HAProxy tells, is taken off its time.

A queue before a server is bounded by a number, and where the server gets slower its wait grows: all would still be
answered, each too late for whoever asked. An answer that would begin too late is refused instead (`Patience`), which
leaves the time to the others. Nothing else is refused for its age: an event that is may be lost.
"""

import math
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

SHORT_S, STANDING_S = 1.0, 1.0
"""See `Patience`."""

_waited: ContextVar[float] = ContextVar("waited", default=0.0)


def waited() -> float:
    """Seconds that the request at hand had waited when this server took it, as far as that is known."""
    return _waited.get()


def due(patience: float = DEADLINE_S) -> float:
    """When the answer to the request at hand is due, monotonic seconds: `patience` after it came, beside what its body
    took, which is its caller's time."""
    return time.monotonic() + patience - waited()


class Patience:
    """How long a request may have waited before it is begun, after what the ones before it had waited.

    A burst is answered, late as it may be. Where more comes than can be answered for longer, a queue stands that helps
    nobody: each waits as long as it may, and as many are refused as without it. So once all that came for STANDING_S
    had waited over SHORT_S, that is the most ("controlled delay" of Maurer, Fail at Scale, ACM Queue 13 (8), 2015).
    """

    def __init__(self, longest: float) -> None:
        """`longest`: seconds that a request may have waited as long as no queue stands."""
        self._longest = longest
        self._standing_since: float | None = None
        self._last = -math.inf

    def spent(self, waited: float, now: float) -> bool:
        """Whether a request is to be refused that had waited so many seconds at `now`, monotonic seconds."""
        if waited <= SHORT_S or now - self._last > STANDING_S:  # nobody came: what stood then stands no more
            self._standing_since = None
        self._last = now
        if waited <= SHORT_S:
            return False
        if self._standing_since is None:
            self._standing_since = now
        return waited > self._longest or now - self._standing_since > STANDING_S


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
