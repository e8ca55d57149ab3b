"""A collector of OpenTelemetry traces: what comes by OTLP over HTTP, decoded."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Spans that came, in the order they came."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.url = ""

    def of(self, trace_id: str, complete: Callable[[list[Span]], bool], seconds: float = 30.0) -> list[Span]:
        """Those of a trace, as soon as they are `complete`."""
        deadline = time.monotonic() + seconds
        while True:
            found = [span for span in list(self.spans) if span.trace_id.hex() == trace_id]
            if complete(found):
                return found
            assert time.monotonic() < deadline, f"after {seconds:g} s: {[span.name for span in found]}"
            time.sleep(0.1)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of this machine."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    collector.spans += scope.spans
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
