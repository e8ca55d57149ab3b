"""A host of images over real HTTP, as good or as bad as a test wants it."""

import io
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Page = Callable[[BaseHTTPRequestHandler], None]


def image(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    """An image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


def colour_of(data: bytes) -> tuple[int, int, int]:
    """The colour in the middle."""
    with Image.open(io.BytesIO(data)) as drawn:
        found = drawn.convert("RGB").getpixel((drawn.width // 2, drawn.height // 2))
    assert isinstance(found, tuple)
    return (round(found[0]), round(found[1]), round(found[2]))


def page(body: bytes, status: int = 200, **headers: str) -> Page:
    """A fixed answer; `_` in the name of a header is a hyphen."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": "image/png", "Content-Length": str(len(body)), **given}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def redirect(to: str, status: int = 302) -> Page:
    """An answer that points elsewhere."""
    return page(b"", status, Location=to)


class Gallery:
    """The server's side of a test."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[str] = []
        """Path of every request."""
        self.headers: list[dict[str, str]] = []
        self.port = 0

    @property
    def host(self) -> str:
        """As an entry of `enrich.images.hosts`."""
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        """The address of a page."""
        return f"http://{self.host}{path}"


@contextmanager
def gallery(pages: dict[str, Page], tls: ssl.SSLContext | None = None) -> Iterator[Gallery]:
    """A host on a free loopback port; what it has no page for is 404."""
    made = Gallery()
    made.pages = pages

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.asked.append(self.path)
            made.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.close_connection = True
            with suppress(OSError):  # the client has seen enough
                made.pages.get(self.path, page(b"none", 404))(self)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that does not trust it
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
