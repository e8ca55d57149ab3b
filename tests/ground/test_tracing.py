"""Spans are made where a request is traced, and hold nothing that a shopper sent."""

import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from rec import tracing
from rec.errors import ConfigError

SECRET = "u-4711 is 181 cm tall"


def test_without_a_traced_request_there_is_no_span(spans: InMemorySpanExporter) -> None:
    with tracing.span("stage"):
        tracing.tell({"rec.k": 10})
        assert tracing.trace_id() is None
    assert spans.get_finished_spans() == ()


def test_a_span_lies_within_what_goes_on(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("test").start_as_current_span("request"):
        outer = tracing.trace_id()
        told = {"db.system.name": "postgresql"}
        with tracing.span("stage"), tracing.span("postgres", kind=tracing.CLIENT, told=told):
            tracing.tell({"rows": 3})
            assert tracing.trace_id() == outer
    inner, stage, request = spans.get_finished_spans()
    assert (inner.name, stage.name) == ("postgres", "stage")
    assert inner.kind is SpanKind.CLIENT
    assert dict(inner.attributes or {}) == {"db.system.name": "postgresql", "rows": 3}
    assert inner.parent is not None
    assert inner.parent.span_id == stage.context.span_id
    assert stage.parent is not None
    assert stage.parent.span_id == request.context.span_id
    assert f"{request.context.trace_id:032x}" == outer


def test_a_failure_leaves_its_class_and_not_its_message(spans: InMemorySpanExporter) -> None:
    def fail() -> None:
        with tracing.span("stage"):
            raise ValueError(SECRET)

    with trace.get_tracer("test").start_as_current_span("request"), pytest.raises(ValueError, match="4711"):
        fail()
    stage, _ = spans.get_finished_spans()
    assert stage.status.status_code is StatusCode.ERROR
    assert dict(stage.attributes or {}) == {"error.type": "ValueError"}
    assert SECRET not in stage.to_json()


def test_without_the_exporter_s_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'shop-rec\[tracing\]'"):
        tracing.otlp()


def test_what_is_exported_says_nothing_of_a_shopper(spans: InMemorySpanExporter) -> None:
    """Serve's own spans have the path in name and attributes, and exceptions with message and stack."""
    with trace.get_tracer("serve").start_as_current_span("proxy GET /v1/users/u-4711") as span:
        span.set_attribute("http.route", "/v1/clients/u-4711")
        span.record_exception(ValueError(SECRET))
        span.set_status(Status(StatusCode.ERROR, SECRET))
    sent = InMemorySpanExporter()
    exporter = tracing.Discreet(sent)
    assert exporter.export(spans.get_finished_spans()) is SpanExportResult.SUCCESS
    (found,) = sent.get_finished_spans()
    assert "4711" not in found.to_json()
    assert found.name == "proxy GET /v1/users/{id}"
    assert found.status.status_code is StatusCode.ERROR
    assert [dict(event.attributes or {}) for event in found.events] == [{"exception.type": "ValueError"}]
    (whole,) = spans.get_finished_spans()
    assert (found.context, found.start_time, found.end_time) == (whole.context, whole.start_time, whole.end_time)
