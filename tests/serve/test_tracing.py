"""A traced request is one trace through Serve's proxy, ingress, stages and Postgres; the others leave none."""

import json
import secrets
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.serve.collector import Collector
from tests.serve.conftest import Shop

pytestmark = pytest.mark.long

BODY = {"user_id": "u04", "profile": {"height_cm": 183.25}, "context": "hiking in the dolomites", "k": 5}
STAGES = ["state", "user_tower", "retrieval", "ranking", "rules", "explanation"]
HANDLED = "replica_handle_request"
"""How Serve names the span of a call in the replica that answers it."""
INGRESS = f"{HANDLED} Recommender __call__"


@dataclass
class Caller:
    """Who traces a request: the spans of the shop belong under this one."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def headers(self) -> dict[str, str]:
        """What goes along with the request."""
        return {"traceparent": f"00-{self.trace_id}-{self.span_id}-01", "X-Request-ID": f"traced-{self.span_id}"}

    def complete(self, spans: list[Span]) -> bool:
        """Whether the ingress's span has come, and all parents."""
        known = {span.span_id.hex() for span in spans} | {self.span_id}
        ended = any(span.name == INGRESS for span in spans)
        return ended and {span.parent_span_id.hex() for span in spans} <= known


def one(spans: list[Span], name: str) -> Span:
    """The only span of a name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def told(span: Span) -> dict[str, str]:
    """The attributes that are one text or number."""
    kinds = {each.key: each.value.WhichOneof("value") for each in span.attributes}
    return {each.key: str(getattr(each.value, kinds[each.key] or "string_value")) for each in span.attributes}


def test_a_traced_request_is_one_tree(shop: Shop, collector: Collector) -> None:
    caller = Caller()
    answer = shop.client.post("/v1/recommend", json=BODY, headers=caller.headers)
    assert answer.status_code == 200, answer.text
    calls = {f"{HANDLED} {call}" for call in ("UserTower encode", "Retriever retrieve", "Ranker rank")}
    spans = collector.of(
        caller.trace_id, lambda found: caller.complete(found) and calls <= {span.name for span in found}
    )
    by_id = {span.span_id: span for span in spans}

    ingress = one(spans, INGRESS)
    found = told(ingress)
    assert found["rec.bundle"] == answer.json()["bundle"]
    assert (found["rec.k"], found["rec.underfilled"]) == ("5", "False")
    assert found["rec.request_id"] == answer.headers["X-Request-ID"] == f"traced-{caller.span_id}"
    for stage in STAGES:
        assert one(spans, stage).parent_span_id == ingress.span_id
    for stage, call in (("user_tower", "UserTower encode"), ("ranking", "Ranker rank")):
        routed = by_id[one(spans, f"{HANDLED} {call}").parent_span_id]
        assert by_id[routed.parent_span_id] == one(spans, stage)
    waits = {by_id[span.parent_span_id].name for span in spans if span.name == "postgres"}
    assert waits == {"state", f"{HANDLED} Retriever retrieve", "explanation"}


def test_no_span_holds_what_is_known_of_a_shopper(shop: Shop, collector: Collector) -> None:
    for ask in (
        lambda headers: shop.client.post("/v1/recommend", json=BODY, headers=headers),
        lambda headers: shop.client.get("/v1/users/u04", headers=headers),
        lambda headers: shop.client.get("/v1/products", params={"query": "dolomites"}, headers=headers),
    ):
        caller = Caller()
        assert ask(caller.headers).status_code == 200
        spans = collector.of(caller.trace_id, caller.complete)
        text = str(spans)
        for secret in ("u04", "183.25", "dolomites"):
            assert secret not in text, text


def test_the_log_names_the_trace(shop: Shop, collector: Collector) -> None:
    caller = Caller()
    shop.client.post("/v1/recommend", json=BODY, headers=caller.headers)
    collector.of(caller.trace_id, caller.complete)
    log = (shop.recipe.root.parent / "shop" / "serve.log").read_text(encoding="utf-8")
    lines = [
        json.loads(line.split(" request ", 1)[1]) for line in log.splitlines() if f"traced-{caller.span_id}" in line
    ]
    assert [line["trace_id"] for line in lines] == [caller.trace_id]


def test_others_leave_no_span(shop: Shop, collector: Collector) -> None:
    before, caller = {span.trace_id for span in collector.spans}, Caller()
    shop.recommend(**BODY)
    shop.client.post("/v1/recommend", json=BODY, headers=caller.headers)
    collector.of(caller.trace_id, caller.complete)
    assert {span.trace_id.hex() for span in collector.spans if span.trace_id not in before} == {caller.trace_id}
