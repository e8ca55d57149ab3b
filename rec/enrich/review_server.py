"""The server of a review page: on this machine only, for whoever has the address that the job prints.

Reading needs the token in the address. Writing needs it in a header, the page's own Origin and this server's Host: a
foreign site that a reviewer has open knows none of them, whatever name it gives to 127.0.0.1. What is
written is checked like the file itself (`rec.enrich.corrections`), and only products of the page can be corrected.
"""

import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rec.enrich import corrections
from rec.enrich.corrections import Correction, Corrections, Line
from rec.enrich.review import Sample
from rec.enrich.review_page import Desk, card, page
from rec.errors import ConfigError, InputError
from rec.vocab.std import StdVocabulary

HOST = "127.0.0.1"
MAX_BODY = 256 * 1024
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str
    std: list[str] | None = None
    re: list[str] | None = None


class _Save(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid")

    product_id: str
    by: str | None = Field(default=None, max_length=100)
    lines: list[_Values] = Field(min_length=1, max_length=100)


class Refused(Exception):
    """A request that is not met: HTTP status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Review:
    """A sample under review, and the file that what is stated goes to."""

    def __init__(self, recipe: str, sample: Sample, vocabulary: StdVocabulary, file: Path) -> None:
        self.token = secrets.token_urlsafe(24)
        self._recipe = recipe
        self._sample = sample
        self._items = {item.row["product_id"]: item for item in sample.items}
        self._vocabulary = vocabulary
        self._file = file
        self._desk = Desk(self.token, file.name)

    def page(self) -> str:
        """The page with what the file says now."""
        return page(self._recipe, self._sample, self._human(), self._vocabulary, self._desk)

    def save(self, body: bytes) -> dict[str, Any]:
        """Write what one card states. Raises Refused when it is not sound: then nothing of it is written."""
        try:
            sent = _Save.model_validate_json(body)
            item = self._items.get(sent.product_id)
            if item is None:
                raise Refused(422, f"{sent.product_id!r} is not on this page")
            content = item.text.content_hash
            lines = [
                Line(product_id=sent.product_id, key=one.key, std=one.std, re=one.re, by=sent.by, content=content)
                for one in sent.lines
            ]
        except ValidationError as error:
            raise Refused(422, error.errors()[0]["msg"]) from None
        try:
            named = [found for line in lines for found in corrections.statements(0, line, self._vocabulary)]
        except ValueError as error:
            raise Refused(422, str(error)) from None
        if len({(found.key, found.kind) for found in named}) < len(named):
            raise Refused(422, "a key is stated twice")
        corrections.append(self._file, lines)
        made = card(item, self._human()[sent.product_id], self._vocabulary, self._desk)
        return {"written": len(lines), "card": made}

    def _human(self) -> Mapping[str, Correction]:
        content = self._file.read_bytes() if self._file.exists() else b""
        return Corrections(corrections.parse(content, self._file), self._vocabulary, self._file.name).by_product


def application(review: Review, port: int) -> FastAPI:
    """The ASGI application of one review at `port`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    @app.get("/")
    async def read(request: Request) -> Response:
        _check(request, hosts, request.query_params.get("token", ""), review.token)
        return HTMLResponse(await run_in_threadpool(review.page), headers=HEADERS)

    @app.post("/corrections")
    async def write(request: Request) -> Response:
        _check(request, hosts, request.headers.get("x-review-token", ""), review.token)
        if request.headers.get("origin") != f"http://{request.headers['host']}":
            raise Refused(403, "only the page itself may write")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise Refused(415, "the body must be application/json")
        return JSONResponse(await run_in_threadpool(review.save, await _body(request)), headers=HEADERS)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return JSONResponse({"error": str(error)}, error.status, HEADERS)

    @app.exception_handler(InputError)
    async def unreadable(_: Request, error: InputError) -> Response:
        return JSONResponse({"error": str(error)}, 409, HEADERS)

    return app


def _check(request: Request, hosts: set[str], token: str, expected: str) -> None:
    if request.headers.get("host") not in hosts:
        raise Refused(403, "this server answers under its own address only")
    if not secrets.compare_digest(token.encode(), expected.encode()):
        raise Refused(403, "open the address that the job printed: it holds the token")


async def _body(request: Request) -> bytes:
    """The body, as long as it is no longer than MAX_BODY."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused(413, f"more than {MAX_BODY} bytes")
    return body


def listen(port: int) -> socket.socket:
    """A socket at `port` of this machine; 0 takes a free one. Raises ConfigError when it cannot be had."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # at once: the address is printed before the server is up
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"port {port} on {HOST} cannot be had ({error}): choose another with --serve") from None
    return listener


def run(review: Review, listener: socket.socket) -> None:
    """Answer until the process is told to stop."""
    app = application(review, listener.getsockname()[1])
    with suppress(KeyboardInterrupt):  # raised once more by uvicorn when it has come to its end
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
