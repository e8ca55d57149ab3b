"""A chat-completions endpoint over real HTTP that does what a test tells it to, and remembers what it was asked."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rec.evaluate import counting
from rec.evaluate.counting import completion, title


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Close the connection half-way through the body."""


Script = Callable[[int, dict[str, Any]], Response]
"""(number of the request, its JSON) → response; may sleep."""


def chat(text: str, prompt: str = "", finish: str = "stop") -> Response:
    """A completion that says `text`."""
    return Response(body=completion(text, prompt, finish))


def sensible(_: int, asked: dict[str, Any]) -> Response:
    """A valid answer: the title's last word is a detail, nothing is inferred."""
    return chat(counting.sensible(asked), counting.prompt_of(asked))


class Endpoint:
    """The server's side of a test."""

    def __init__(self, script: Script) -> None:
        self.asked: list[dict[str, Any]] = []
        """JSON of every request, in order of arrival."""
        self.keys: set[str] = set()
        """What the Authorization headers held."""
        self.arrived: list[float] = []
        self.url = ""
        self._script = script
        self._lock = threading.Lock()

    @property
    def titles(self) -> list[str]:
        """First line of the product text of each request."""
        return [title(counting.prompt_of(asked)) for asked in self.asked]

    def take(self, asked: dict[str, Any], authorization: str) -> Response:
        """Remember a request and make its response."""
        with self._lock:
            number = len(self.asked)
            self.asked.append(asked)
            self.keys.add(authorization)
            self.arrived.append(time.monotonic())
        return self._script(number, asked)


@contextmanager
def serve(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """An endpoint on a free loopback port."""
    endpoint = Endpoint(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made = endpoint.take(asked, self.headers.get("Authorization", ""))
            self.send_response(made.status)
            for name, value in {"Content-Type": "application/json", **made.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(made.body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # the client gave up
                self.wfile.write(made.body[: len(made.body) // 2] if made.drop else made.body)
            self.close_connection = made.drop

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    if tls is not None:
        endpoint.url = f"https://localhost:{server.server_address[1]}/v1"
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
