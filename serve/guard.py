"""Who may ask, how often, from which pages; and what is written of every request. ASGI, before the body is read."""

import asyncio
import json
import logging
import math
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rec import api_keys, tracing
from serve.metrics import metrics

log = logging.getLogger("ray.serve")

OPEN = ("/healthz", "/readyz")
"""What probes ask, without a key."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MOST_WAIT_S = 60
ELSEWHERE = (
    "without keys the server answers at 127.0.0.1 or localhost alone: ask there, or set REC_API_KEYS for another Host"
)
CLOSED = 499
"""What is noted of a request whose caller did not wait for the answer, or never sent the body."""


class Buckets:
    """A token bucket per key: `rate` tokens a second, as many as that (at least one) at once."""

    def __init__(self, rate: float) -> None:
        self._rate, self._size = rate, max(rate, 1.0)
        self._left: dict[int | None, tuple[float, float]] = {}  # key -> (tokens, when that was)

    def take(self, key: int | None, now: float) -> float:
        """Take a token at `now` seconds; returns the seconds until there is one, 0 when it was there."""
        tokens, last = self._left.get(key, (self._size, now))
        tokens = min(self._size, tokens + (now - last) * self._rate)
        taken = tokens >= 1
        self._left[key] = (tokens - taken, now)
        return 0.0 if taken else (1 - tokens) / self._rate


class Guard:
    """ASGI middleware: 401 without a key where there are keys, 429 with Retry-After beyond the rate of one.

    Where there are none, a Host that is no name of this machine is 421: a page from elsewhere, whose name has come to
    mean 127.0.0.1 (DNS rebinding), is of one origin with the server and would read all that it answers.
    It stands in the replica, behind the queue that all keys share: it spares the work of an answer, and no place there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._access = api_keys.access()
        self._buckets = None if self._access.rate is None else Buckets(self._access.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        key = None
        if self._access.keys:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            key = self._access.key(given.strip() if scheme.lower() == "bearer" else None)
            if key is None:
                problem = {"error": "unauthorized", "message": "send a key as `Authorization: Bearer KEY`"}
                return JSONResponse(problem, status_code=401, headers={"WWW-Authenticate": "Bearer"})
        elif not api_keys.is_loopback_header(headers.get("host", "")):
            return JSONResponse({"error": "misdirected_request", "message": ELSEWHERE}, status_code=421)
        wait = 0.0 if self._buckets is None else self._buckets.take(key, time.monotonic())
        if wait > 0:
            problem = {"error": "too_many_requests", "message": f"{self._access.rate:g} requests a second are allowed"}
            after = str(min(math.ceil(wait), MOST_WAIT_S))
            return JSONResponse(problem, status_code=429, headers={"Retry-After": after})
        return None


class Cors(CORSMiddleware):
    """Browsers let pages of the origins in REC_CORS_ORIGINS ask, and no others."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            allow_origins=api_keys.access().origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )


class Observe:
    """ASGI middleware: a log line and a count per request, without what is in it.

    Serve's proxy, or behind HAProxy the replica, gives a request without an X-Request-ID one and puts it on the answer;
    a caller's that is more than letters, digits and a few signs is 400, as it would stand in logs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLOSED
        request_id = Headers(scope=scope).get("x-request-id") or uuid.uuid4().hex

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if REQUEST_ID.fullmatch(request_id):
                await self._app(scope, receive, noting)
            else:
                request_id = "invalid"
                problem = {"error": "request_id", "message": f"X-Request-ID must be {REQUEST_ID.pattern}"}
                await JSONResponse(problem, status_code=400)(scope, receive, noting)
        except asyncio.CancelledError:
            status = CLOSED
            raise
        except Exception:
            status = 500
            raise
        finally:
            # the route as declared: a path holds ids of users
            route = getattr(scope.get("route"), "path_format", "other")
            metrics().request(route, status)
            line = {
                "request_id": request_id,
                "method": scope["method"] if route != "other" else "",
                "route": route,
                "status": status,
                "ms": round(1e3 * (time.perf_counter() - began), 1),
            }
            trace_id = tracing.trace_id()
            if trace_id is not None:
                tracing.tell({"rec.request_id": request_id})
                line["trace_id"] = trace_id
            log.info("request %s", json.dumps(line))
