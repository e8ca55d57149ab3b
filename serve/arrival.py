"""When an answer is due: so long after its request came to the shop's HAProxy, which says when that was.

A queue before a server is bounded by a number, and where the server gets slower its wait grows: all would still be
answered, each too late for whoever asked. So what a request has waited is taken off its time, and with hardly any left
it is 503 at once, which leaves the time to the others.
"""

import time
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.fallible import DEADLINE_S
from serve.guard import OPEN
from serve.problems import RETRY_S

ARRIVED = "x-rec-arrived"
"""Microseconds since 1970 by this machine's clock. `serve/haproxy` puts it in the place of a caller's; behind Serve's
own proxy it is what a caller says, if anything."""
LEAST_S = 1.0
"""A request with less left is refused. Who waits for a thread after that is not looked at again."""

_waited: ContextVar[float] = ContextVar("waited", default=0.0)


def due(patience: float = DEADLINE_S) -> float:
    """When the answer to the request at hand is due, monotonic seconds: `patience` after it came."""
    return time.monotonic() + patience - _waited.get()


class Arrival:
    """ASGI middleware: 503 with Retry-After where a request has waited too long; probes are answered always."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with what it has waited, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        waited = _since(Headers(scope=scope).get(ARRIVED, ""))
        if waited > DEADLINE_S - LEAST_S:
            problem = {"error": "overloaded", "message": f"the request waited {waited:.0f} s for its turn; try again"}
            await JSONResponse(problem, status_code=503, headers={"Retry-After": str(RETRY_S)})(scope, receive, send)
            return
        token = _waited.set(waited)
        try:
            await self._app(scope, receive, send)
        finally:
            _waited.reset(token)


def _since(arrived: str) -> float:
    """Seconds since then; 0 for what is no time, or one to come."""
    if not (arrived.isascii() and arrived.isdigit() and len(arrived) < 20):
        return 0.0
    return max(0.0, time.time() - int(arrived) / 1e6)
