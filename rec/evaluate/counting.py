"""A chat-completions endpoint in a process of its own that tells of every request and every delivery.

    python -m rec.evaluate.counting

Its first line on stdout is the URL, the others are JSON: `arrived` when a request has been read, `delivered` when its
whole response has been written to a client that was still there. Times are of the host's monotonic clock, which all its
processes share. Answers, delays and faults depend on the product text alone: two texts of sixteen get a 429 and a 500
before their first answer.
"""

import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, ClassVar

from rec.enrich.prompt import SEEN_PREFIX, STD_PREFIX

BYTES_PER_TOKEN = 3.7
DELAYS_S = (0.05, 0.25)
"""Shortest and longest time until a response."""


def completion(text: str, prompt: str = "", finish: str = "stop") -> bytes:
    """The body of a response that says `text`."""
    usage = {
        "prompt_tokens": round(len(prompt.encode()) / BYTES_PER_TOKEN),
        "completion_tokens": max(1, len(text) // 4),
    }
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(whole).encode()


def fence(prompt: str) -> str:
    """The code around the product text of a prompt, which is a hash of the text."""
    return prompt.split("<<")[-1].splitlines()[0]


def title(prompt: str) -> str:
    """The first line of the product text of a prompt."""
    return prompt.split("<<")[-1].splitlines()[1]


def prompt_of(asked: dict[str, Any]) -> str:
    """The text of a request's first message, which may have images beside it."""
    content = asked["messages"][0]["content"]
    return content if isinstance(content, str) else str(content[0]["text"])


def sensible(asked: dict[str, Any]) -> str:
    """A valid answer: the title's last word is a detail, nothing is concluded."""
    properties = asked["response_format"]["json_schema"]["schema"]["properties"]
    concluded = {name: None for name in properties if name.startswith((STD_PREFIX, SEEN_PREFIX))}
    found = [{"key": "detail", "phrase": title(prompt_of(asked)).split()[-1]}]
    return json.dumps({"found": found, **concluded})


@dataclass(slots=True)
class Request:
    """One request as the endpoint saw it."""

    fence: str
    arrived: float
    """Seconds of the monotonic clock."""
    status: int | None = None
    """None while it waits, and for ever when the client was gone before its response was written."""
    delivered: float | None = None


class Endpoint:
    """The endpoint as its starter sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        """In order of arrival."""

    def listen(self, lines: IO[str]) -> None:
        """Take what the endpoint tells, until it ends."""
        for told in map(json.loads, lines):
            if "arrived" in told:
                self.requests.append(Request(told["fence"], told["arrived"]))
            else:
                request = self.requests[told["number"]]
                request.status, request.delivered = told["status"], told["delivered"]


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """An endpoint that runs until the block ends."""
    with subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = Endpoint(process.stdout.readline().strip())
        listener = threading.Thread(target=started.listen, args=(process.stdout,), daemon=True)
        listener.start()
        try:
            yield started
        finally:
            process.terminate()
            listener.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    seen: ClassVar[Counter[str]] = Counter()
    """Fence → requests so far."""

    def handle(self) -> None:
        """A client that is killed between two requests is no error."""
        with suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][0]["content"]
        code = fence(prompt)
        with self.lock:
            number, before = self.seen.total(), self.seen[code]
            self.seen[code] += 1
            print(json.dumps({"number": number, "fence": code, "arrived": time.monotonic()}), flush=True)
        drawn = int(code, 16)
        status = {0: 429, 1: 500}.get(drawn % 16, 200) if before == 0 else 200
        low, high = DELAYS_S
        time.sleep(low + (high - low) * (drawn // 16 % 1_000) / 1_000)
        body = completion(sensible(asked), prompt) if status == 200 else b'{"error": {"message": "not now"}}'
        if _gone(self.connection):
            self.close_connection = True
            return
        with suppress(ConnectionError):  # the client went in this moment
            self.send_response(status)
            for name, value in (("Content-Type", "application/json"), ("Retry-After", "0.1")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            with self.lock:
                print(json.dumps({"number": number, "status": status, "delivered": time.monotonic()}), flush=True)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


def _gone(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection: it asks nothing while it waits for a response."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True


def _main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _main()
