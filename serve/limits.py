"""Bounds on request bodies, on the time that they take and on what they are said to be, before anything parses them."""

import asyncio
from email.message import Message as Headers

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_S = 10.0
"""Longest wait for a body: whoever sends one byte by byte would hold a place among the requests that are answered."""


class LimitBody:
    """ASGI middleware: a body of more than `max_bytes`, declared or not, is answered 413, a slow one 408."""

    def __init__(self, app: ASGIApp, max_bytes: int, within_s: float = BODY_S) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the bound, then hand it on."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._within_s):
                body = await self._body(receive)
        except TimeoutError:
            problem = {"error": "body_too_slow", "message": f"the body may take {self._within_s:g} s"}
            await JSONResponse(problem, status_code=408, headers={"Connection": "close"})(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > self._max_bytes:
            problem = {"error": "body_too_large", "message": f"the body may have {self._max_bytes} bytes"}
            await JSONResponse(problem, status_code=413)(scope, receive, send)
            return
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive) -> bytearray | None:
        """The body, or as much of it as shows that it is too large; None when the caller is gone."""
        body, more = bytearray(), True
        while more and len(body) <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body


async def json_only(request: Request) -> None:
    """Refuse a body that is not said to be JSON (`application/json` or `application/*+json`) with 415.

    What FastAPI goes by, which would take such a body for a string of bytes and miss the fields in it.
    """
    if not await request.body():
        return
    said = Headers()
    said["content-type"] = request.headers.get("content-type", "")
    subtype = said.get_content_subtype()
    if said.get_content_maintype() != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise HTTPException(415, "send the body as `Content-Type: application/json`")
