"""Spans are made where a request is traced, and hold nothing that a shopper sent."""

import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

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
