"""Spans of OpenTelemetry: what a traced request waited for. Where a request is not traced, they cost a look.

Ray Serve decides what is traced. It is told by RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=rec.tracing:otlp in the
environment of its processes, begins a span in each that a request passes, and hands the context from one to the next.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

from rec.errors import ConfigError

CLIENT = SpanKind.CLIENT
"""The kind of a span in which another server is waited for."""
Value = str | int | float | bool | Sequence[str]

EXCEPTION_TYPE = "exception.type"
_SHOPPER = re.compile(r"(/v1/(?:users|clients)/).*", re.DOTALL)
_NAMELESS = r"\1{id}"
_tracer = trace.get_tracer("rec")


def otlp() -> list[SpanProcessor]:
    """What Serve sends spans with: OTLP over HTTP, set by the standard variables OTEL_EXPORTER_OTLP_*.

    Raises ConfigError where the package for it is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(f"tracing needs `pip install 'shop-rec[tracing]'` ({error})") from error
    return [BatchSpanProcessor(Discreet(OTLPSpanExporter()))]


class Discreet(SpanExporter):
    """Exports spans without what a shopper sent: Serve names some by the path of the request, which has ids, and notes
    the messages of exceptions, which may quote anything."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand on what may be said."""
        return self._exporter.export([_discreet(span) for span in spans])

    def shutdown(self) -> None:
        """End the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Have the exporter send what it holds."""
        return self._exporter.force_flush(timeout_millis)


def _discreet(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=_SHOPPER.sub(_NAMELESS, span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={
            name: _SHOPPER.sub(_NAMELESS, value) if isinstance(value, str) else value
            for name, value in (span.attributes or {}).items()
        },
        events=[Event(event.name, _kind(event.attributes or {}), event.timestamp) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _kind(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in attributes.items() if name == EXCEPTION_TYPE}


@contextmanager
def span(name: str, *, kind: SpanKind = SpanKind.INTERNAL, told: Mapping[str, Value] | None = None) -> Iterator[None]:
    """A span within the one that goes on, where that is recorded.

    A failure leaves the name of its class; its message may hold what a shopper sent.
    """
    if not trace.get_current_span().is_recording():
        yield  # a span without a parent would be a trace of its own
        return
    with _tracer.start_as_current_span(
        name, kind=kind, attributes=told, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute("error.type", type(error).__qualname__)
            current.set_status(Status(StatusCode.ERROR))
            raise


def tell(attributes: Mapping[str, Value]) -> None:
    """Say something of the span that goes on; nothing of a shopper."""
    trace.get_current_span().set_attributes(attributes)


def trace_id() -> str | None:
    """The id of the trace that the work at hand belongs to, 32 hex digits; None where it is not recorded."""
    current = trace.get_current_span()
    return format_trace_id(current.get_span_context().trace_id) if current.is_recording() else None
