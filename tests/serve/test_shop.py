"""The real shop: Ray Serve, Postgres and HTTP, from `start` to `stop`.

The last tests of the file kill parts of the shop; the order of the file is the order of its life.
"""

import json
import math
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import httpx
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient

from rec import assemble, bundle, ports, postgres, publish
from rec.config import Config
from rec.evaluate import load
from rec.index import experiments, live_events, promote, rule_versions
from rec.index import load as vectors_and_products
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent
from rec.index.search import Filters
from rec.recommend.chain import Chain
from rec.recommend.request import MAX_CONTEXT_CHARS, MAX_HISTORY, Choice, Request
from rec.schema import EVENTS
from rec.sources import tables as sources
from serve import api, fused
from serve.fallible import DEADLINE_S
from serve.problems import RETRY_S
from serve.stages import STAGE_S
from tests.bundle import tiny
from tests.serve.conftest import Shop, damaged, frozen, shop_job

pytestmark = pytest.mark.slow

Problem = tuple[dict[str, Any], list[Any]]
BODIES: list[dict[str, Any]] = [{"k": 5}, {"user_id": "u1", "k": 7}, {"profile": {"height_cm": 180.0}, "k": 3}]


def test_importing_the_graph_opens_nothing(tmp_path: Path) -> None:
    probe = "import ray, serve.app; assert not ray.is_initialized(); print(type(serve.app.graph).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={"PATH": "/usr/bin", "PYTHONPATH": str(tiny.__file__).rsplit("/tests/", 1)[0], "REC_STORE": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "Application", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_api_knows_every_kind_of_event() -> None:
    for body in (api.Event, api.LiveEventBody):
        assert get_args(body.model_fields["event"].annotation) == EVENTS


def test_healthy_and_ready(shop: Shop) -> None:
    assert shop.client.get("/healthz").json() == {"status": "ok"}
    ready = shop.client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert set(ready["milliseconds"]) >= {"user_tower", "retrieval", "ranking"}


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        ({}, Request()),
        ({"user_id": "u04", "k": 25}, Request(user_id="u04", k=25)),
        (
            {"history": ["P0001", {"product_id": "P0002", "event": "cart"}], "context": "a red dress", "k": 40},
            Request(history=(Choice("P0001"), Choice("P0002", "cart")), context="a red dress", k=40),
        ),
        (
            {"history": [{"product_id": "P0004", "size": "12", "fit": "large"}]},
            Request(history=(Choice("P0004", size="12", fit="large"),)),
        ),
        ({"profile": {"height_cm": 171, "birth_year": 1990}}, Request(profile={"height_cm": 171, "birth_year": 1990})),
    ],
)
def test_the_served_answer_is_the_chain_s(shop: Shop, chain: Chain, body: dict[str, Any], request_: Request) -> None:
    served, local = shop.recommend(**body), chain.recommend(request_)
    assert [i["product_id"] for i in served["items"]] == [i["product_id"] for i in local.items]
    for mine, theirs in zip(served["items"], local.items, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert mine["reasons"] == theirs["reasons"]
        assert (mine["because"] or {}).get("matched") == (theirs["because"] or {}).get("matched")
    assert served["bundle"] == local.bundle


def test_products_say_where_attributes_come_from_when_asked(shop: Shop) -> None:
    (item,) = shop.recommend(k=1, evidence=True)["items"]
    expected = [
        *({"kind": "std", "key": key, "value": value, "source": "given", "evidence": None}
          for key, values in item["attributes"].items() for value in values),
        *({"kind": "re", "key": key, "value": value, "source": "llm", "evidence": value.removesuffix(" feel")}
          for key, values in item["details"].items() for value in values),
    ]  # fmt: skip
    assert item["evidence"] == expected
    similar, found = f"/v1/products/{item['product_id']}/similar", "/v1/products"
    for asked in (True, False):
        answers = [shop.client.get(path, params={"evidence": asked}).json() for path in (similar, found)]
        products = [answers[0]["product"], *(product for answer in answers for product in answer["items"])]
        assert {product["evidence"] is not None for product in products} == {asked}
        assert answers[0]["product"]["evidence"] == (expected if asked else None)
    assert shop.recommend(k=1)["items"][0]["evidence"] is None


def test_the_funnel_counts_what_each_stage_left(shop: Shop) -> None:
    whole, unranked = (shop.recommend(k=5, without=left)["funnel"] for left in ([], ["ranking"]))
    assert whole == {"catalogue": tiny.ITEMS, "candidates": whole["ranked"], "ranked": whole["ranked"], "shown": 5}
    assert 5 < whole["ranked"] <= tiny.ITEMS
    assert unranked == {**whole, "ranked": 0}


def test_one_process_answers_what_the_graph_answers(
    shop: Shop, published: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REC_STORE", published.store)
    with TestClient(fused.create()) as client:
        for body in BODIES:
            ours, theirs = shop.recommend(**body), client.post("/v1/recommend", json=body).json()
            for answer in (ours, theirs):
                assert answer.pop("milliseconds")["total"] > 0
                assert answer.pop("at")
            assert ours.pop("exposure_id")
            assert theirs.pop("exposure_id") is None, "it logs nothing"
            assert theirs == ours
        refused = client.post("/v1/recommend", json={"history": ["no such product"]})
        assert refused.status_code == 404


def test_load_is_counted_answer_by_answer(shop: Shop) -> None:
    found = load.closed(f"{shop.url}v1/recommend", BODIES, clients=2, seconds=1.0, keep=4)
    assert found.statuses == {200: len(found.milliseconds)}
    assert [len(body["items"]) for body in found.bodies] != []
    assert found.per_second == pytest.approx(len(found.milliseconds) / found.seconds)
    assert 0 < found.percentile(50) <= found.percentile(99)
    refused = load.closed(f"{shop.url}v1/recommend", [{"k": -1}], clients=1, seconds=0.2)
    assert set(refused.statuses) == {422}
    assert math.isnan(refused.percentile(99))


@pytest.mark.parametrize(
    "problem",
    [
        ({"k": 0}, ["body", "k"]),
        ({"k": 101}, ["body", "k"]),
        ({"k": "many"}, ["body", "k"]),
        ({"wishes": 1}, ["body", "wishes"]),
        ({"history": ["P0001"] * (MAX_HISTORY + 1)}, ["body", "history"]),
        ({"history": [{"product_id": "P0001", "size": "8" * 41}]}, ["body", "history", 0, "Event", "size"]),
        ({"history": [{"product_id": "P0001", "fit": "tight"}]}, ["body", "history", 0, "Event", "fit"]),
        ({"history": [{"product_id": "P0001", "event": "stolen"}]}, ["body", "history", 0]),
        ({"history": [{"product_id": "P0001", "at": "2025-01-01T00:00:00"}]}, ["body", "history", 0]),
        ({"context": "x" * (MAX_CONTEXT_CHARS + 1)}, ["body", "context"]),
        ({"context": "\x00"}, ["body", "context"]),
        ({"user_id": ""}, ["body", "user_id"]),
        ({"user_id": "\ud800"}, ["body", "user_id"]),
        ({"profile": {"height_cm": 900}}, ["body", "profile", "height_cm"]),
        ({"profile": {"height_cm": 1.7}}, ["body", "profile", "height_cm"]),
        ({"profile": {"weight_kg": 301}}, ["body", "profile", "weight_kg"]),
        ({"profile": {"birth_year": 1899}}, ["body", "profile", "birth_year"]),
        ({"profile": {"height_cm": float("nan")}}, ["body", "profile", "height_cm"]),
        ({"profile": {"shoe": 43}}, ["body", "profile", "shoe"]),
        ({"filters": {"category": ["spaceship"]}}, ["body", "filters", "category"]),
        ({"filters": {"price_min": 9, "price_max": 3}}, ["body", "filters"]),
        ({"filters": {"price_min": 1e300}}, ["body", "filters", "price_min"]),
        ({"filters": {"price_max": 1e300}}, ["body", "filters", "price_max"]),
        ({"filters": {"colour": "red"}}, ["body", "filters", "colour"]),
        ([], ["body"]),
    ],
    ids=lambda problem: ".".join(map(str, problem[1])),
)
def test_a_malformed_body_is_422_with_the_field(shop: Shop, problem: Problem) -> None:
    body, where = problem
    answer = shop.client.post("/v1/recommend", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert any(each["loc"][: len(where)] == where for each in answer.json()["detail"]), answer.json()


def test_what_is_no_json_is_422(shop: Shop) -> None:
    answer = shop.client.post("/v1/recommend", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_unknown_products_are_404_and_listed(shop: Shop) -> None:
    answer = shop.client.post("/v1/recommend", json={"history": ["P0001", "x", "y"]})
    assert (answer.status_code, answer.json()["products"]) == (404, ["x", "y"])
    answer = shop.client.get("/v1/products/x%2Fy/similar")
    assert (answer.status_code, answer.json()["error"]) == (404, "unknown_products")
    assert answer.json()["products"] == ["x/y"]


def stream(size: int) -> Iterator[bytes]:
    """`size` bytes whose length is not declared."""
    for _ in range(size // 1024):
        yield b" " * 1024


@pytest.mark.parametrize("content", [lambda: b" " * 70_000, lambda: stream(80_000)], ids=["declared", "streamed"])
def test_a_large_body_is_413(shop: Shop, content: Callable[[], Any]) -> None:
    answer = shop.client.post("/v1/recommend", content=content(), headers={"content-type": "application/json"})
    assert answer.status_code == 413, answer.text


def test_the_largest_allowed_request_passes(shop: Shop) -> None:
    history = [tiny.product_id(row) for row in range(tiny.ITEMS)] + [tiny.product_id(0)] * (MAX_HISTORY - tiny.ITEMS)
    answer = shop.recommend(history=history, context="옷" * MAX_CONTEXT_CHARS, k=100)
    assert answer["items"] == []  # everything was seen
    assert answer["underfilled"]


def test_similar_products_are_near_and_in_stock(shop: Shop) -> None:
    answer = shop.client.get("/v1/products/P0003/similar?k=8").json()
    assert answer["product"]["product_id"] == "P0003"
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    assert all(int(item["product_id"][1:]) % 10 != 9 for item in answer["items"])
    assert answer["items"][0]["attributes"]["category"] == answer["product"]["attributes"]["category"]
    assert "P0003" not in [item["product_id"] for item in answer["items"]]
    assert shop.client.get("/v1/products/P0003/similar?k=0").status_code == 422


def posted(shop: Shop, *events: dict[str, Any]) -> httpx.Response:
    """The answer to events of item P0003 unless they say another one."""
    return shop.client.post("/v1/events", json={"events": [{"product_id": "P0003", **event} for event in events]})


def test_an_event_counts_in_the_next_request(shop: Shop) -> None:
    assert {item["because"] for item in shop.recommend(client_id="c1", k=5)["items"]} == {None}
    sent = posted(shop, {"event_id": "e1", "client_id": "c1"}, {"event_id": "e2", "user_id": "u08", "event": "cart"})
    assert (sent.status_code, sent.json()) == (200, {"stored": ["e1", "e2"], "repeated": [], "forgotten": []})
    again = posted(shop, {"event_id": "e1", "client_id": "c1"}, {"event_id": "e3", "client_id": "c1"})
    assert (again.status_code, again.json()["repeated"], again.json()["stored"]) == (200, ["e1"], ["e3"])
    items = shop.recommend(client_id="c1", k=5)["items"]
    assert {item["because"]["product_id"] for item in items} == {"P0003"}
    assert "P0003" not in [item["product_id"] for item in items]
    assert {item["because"] for item in shop.recommend(user_id="c1", k=5)["items"]} == {None}, "a client is no user"
    told = shop.client.get("/v1/users/u08").json()
    assert [event["event_id"] for event in told["live_events"]] == ["e2"]


def test_a_malformed_event_is_refused_with_all_others(shop: Shop) -> None:
    client = {"event_id": "x", "client_id": "c"}
    for event in (
        {"event_id": "x"},
        {**client, "user_id": "u"},
        {**client, "event": "stare"},
        {**client, "at": "2999-01-01T00:00:00Z"},
        {**client, "at": "0001-01-01T00:00:00+23:59"},
        {**client, "at": "2025-01-01T00:00:00"},
        {**client, "size": "8" * 41},
        {**client, "fit": "tight"},
        {**client, "exposure_id": "42"},
        {**client, "exposure_id": "019AB0F3-5C1E-7D20-9B1A-3F6F0C2D8E41"},
        {"event_id": "", "client_id": "c"},
        {"event_id": "x", "client_id": "\x00"},
        {"client_id": "c"},
    ):
        answer = posted(shop, {"event_id": "good", "client_id": "refused"}, event)
        assert answer.status_code == 422, (event, answer.text)
        assert answer.json()["detail"][0]["loc"][:3] == ["body", "events", 1]
    assert {item["because"] for item in shop.recommend(client_id="refused", k=3)["items"]} == {None}


def test_every_example_of_the_document_is_answered(shop: Shop) -> None:
    # products are those of the demo, whose ids begin with another letter
    document = json.loads(shop.client.get("/openapi.json").text.replace('"S00', '"P00'))
    bodies = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            given = {
                each["name"]: each["schema"].get("examples", [None])[0] for each in operation.get("parameters", [])
            }
            query = {name: value for name, value in given.items() if value is not None and f"{{{name}}}" not in path}
            where = path.format(**given)
            content = operation.get("requestBody", {}).get("content", {"": {}})
            examples = next(iter(content.values())).get("examples", {"": {"value": None}})
            for name, example in examples.items():
                answer = shop.client.request(method, where, params=query, json=example["value"])
                expected = (200, 404) if path == "/v1/users/{user_id}" else (200,)
                assert answer.status_code in expected, (method, path, name, answer.text)
                bodies += "requestBody" in operation
    assert bodies == 6


def test_events_of_unknown_products_and_too_many_are_refused(shop: Shop) -> None:
    answer = posted(shop, {"event_id": "g", "client_id": "c"}, *(
        {"event_id": f"y{name}", "client_id": "c", "product_id": name} for name in "ab"))  # fmt: skip
    assert (answer.status_code, answer.json()["products"]) == (422, ["a", "b"])
    many = [{"event_id": f"many{number}", "client_id": "many"} for number in range(101)]
    assert posted(shop, *many).status_code == 422
    assert posted(shop).status_code == 422
    assert len(posted(shop, *many[:100]).json()["stored"]) == 100


def test_a_user_is_exported_and_forgotten(shop: Shop) -> None:
    shown = shop.recommend(user_id="u09", context="linen", k=3)
    event = {"event_id": "u1", "user_id": "u09", "context": "linen", "exposure_id": shown["exposure_id"]}
    assert posted(shop, event).status_code == 200
    deadline = time.monotonic() + 30
    while not shop.client.get("/v1/users/u09").json()["exposures"]:
        assert time.monotonic() < deadline, "the list is not logged"
        time.sleep(0.1)
    told = shop.client.get("/v1/users/u09").json()
    assert told["profile"] == {"height_cm": 169.0, "birth_year": 1989}
    assert told["events"][0]["product_id"] == "P0003"
    assert told["live_events"][0]["context"] == "linen"
    (listed,) = told["exposures"]
    assert (listed["exposure_id"], listed["context"]) == (shown["exposure_id"], "linen")
    assert listed["products"] == [item["product_id"] for item in shown["items"]]
    assert told["live_events"][0]["exposure_id"] == shown["exposure_id"]
    gone = shop.client.delete("/v1/users/u09")
    expected = {"events": len(told["events"]), "profiles": 1, "live_events": 1, "exposures": 1}
    assert (gone.status_code, gone.json()) == (200, expected)
    assert shop.client.get("/v1/users/u09").status_code == 404
    assert {item["because"] for item in shop.recommend(user_id="u09", k=3)["items"]} == {None}
    assert posted(shop, {"event_id": "u2", "user_id": "u09"}).json()["forgotten"] == ["u2"]
    assert shop.client.get("/v1/users/some%2Fbody").status_code == 404


def test_who_brings_events_to_a_slow_database_takes_no_connection_of_an_answer(shop: Shop) -> None:
    with ThreadPoolExecutor(12) as callers:
        with postgres.connect(postgres.url(shop.recipe.store)) as other:
            other.execute("LOCK TABLE live_events IN SHARE MODE")  # they can be read
            events = [{"event_id": f"slow{number}", "client_id": "slow"} for number in range(12)]
            brought = [callers.submit(posted, shop, event) for event in events]
            time.sleep(1.0)
            assert not shop.recommend(user_id="u04", k=5)["degraded"]
            assert not all(each.done() for each in brought)
        assert {each.result().status_code for each in brought} <= {200, 503}


@pytest.mark.parametrize("client", ["a/b c", "a\nb", "line\n", "/similar"])
def test_a_client_s_events_can_be_deleted(shop: Shop, client: str) -> None:
    path = quote(client, safe="")
    events = [{"event_id": f"v{number} {path}", "client_id": client} for number in range(2)]
    assert posted(shop, *events, {"event_id": f"v2 {path}", "user_id": client}).status_code == 200
    gone = [shop.client.delete(f"/v1/clients/{path}") for _ in range(2)]
    counts = [{"live_events": count, "exposures": 0} for count in (2, 0)]
    assert [(each.status_code, each.json()) for each in gone] == [(200, each) for each in counts]
    assert {item["because"] for item in shop.recommend(client_id=client, k=3)["items"]} == {None}
    assert shop.client.get(f"/v1/users/{path}").json()["live_events"], "a client is no user"
    assert posted(shop, events[0]).json()["stored"] == [events[0]["event_id"]]


def test_explanations_are_the_chain_s(shop: Shop, chain: Chain) -> None:
    outcomes = set()
    for product in [tiny.product_id(row) for row in (1, 0, 84)] + ["gone"]:
        asked = {"user_id": "u04", "context": "a red dress", "filters": {"category": ["dress"]}, "k": 8}
        served = shop.client.post("/v1/explain", json={"product_id": product, **asked}).json()
        request = Request(user_id="u04", context="a red dress", filters=Filters(categories=("dress",)), k=8)
        local = chain.explain(request, product, None)
        assert (served["outcome"], served["place"]) == (local.outcome, local.place)
        assert (served["ranking"] or {}).get("rank") == (local.ranking.rank if local.ranking else None)
        outcomes.add(served["outcome"])
    assert {"unknown_product", "filtered"} < outcomes
    first = shop.recommend(user_id="u04", k=3)["items"][0]
    shown = shop.client.post("/v1/explain", json={"product_id": first["product_id"], "user_id": "u04"}).json()
    assert (shown["outcome"], shown["place"], shown["item"]["reasons"]) == ("shown", 1, first["reasons"])
    asked = {"product_id": "P0001", "category": "dress", "k": 8}
    anybody = shop.client.get("/v1/explain", params=asked).json()
    local = chain.explain(Request(filters=Filters(categories=("dress",)), k=8), "P0001", None)
    assert (anybody["outcome"], anybody["nearness"]["rank"]) == (local.outcome, local.nearness.rank)
    for body, status in (
        ({"user_id": "u04"}, 422),
        ({"product_id": "P0001", "profile": {"shoe": 43}}, 422),
        ({"product_id": "P0001", "filters": {"category": ["spaceship"]}}, 422),
        ({"product_id": "P0001", "history": ["gone"]}, 404),
    ):
        assert shop.client.post("/v1/explain", json=body).status_code == status, body
    for query in ({"category": "spaceship"}, {"user_id": "u04"}, {"client_id": "c"}, {"context": "a dress"}):
        assert shop.client.get("/v1/explain", params={"product_id": "P0001", **query}).status_code == 422, query


def test_requests_have_ids_and_bundles_are_listed(shop: Shop) -> None:
    answer = shop.client.get("/v1/bundles", headers={"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    told = answer.json()
    assert told["active"] == told["serving"] == shop.recommend(k=1)["bundle"]
    assert [(each["bundle"], each["recipe"], each["items"]) for each in told["known"] if each["state"] == "active"] == [
        (told["active"], "tiny", tiny.ITEMS)
    ]
    assert len(shop.client.get("/healthz").headers["x-request-id"]) > 8
    assert shop.client.get("/healthz", headers={"x-request-id": 'a"b{}'}).status_code == 400
    log, deadline = "", time.monotonic() + 30
    while '"mine-1"' not in log:  # Ray brings the lines of replicas together
        assert time.monotonic() < deadline, log[-2_000:]
        time.sleep(0.2)
        log = (Path(shop.recipe.store) / "shop" / "serve.log").read_text(encoding="utf-8")
    (line,) = [line for line in log.splitlines() if '"mine-1"' in line]
    told = json.loads(line[line.index("{") :])
    assert (told["route"], told["status"]) == ("/v1/bundles", 200)
    assert "u09" not in log, "routes, not paths, whoever writes"


def test_the_page_is_whole_and_asks_nobody_else(shop: Shop) -> None:
    page = shop.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "innerHTML" not in page.text
    facts = shop.client.get("/v1/shop").json()
    assert facts["categories"] == sorted(tiny.CATEGORIES)
    assert facts["users"][0]["recent"]
    assert facts["profile_ranges"]["height_cm"] == [50, 250]
    assert all(f'id="{name}"' in page.text for name in facts["profile_ranges"]), "the page bounds an input of each"
    found = shop.client.get("/v1/products", params={"query": "원피스", "limit": 3}).json()["items"]
    assert len(found) == 3
    assert all("원피스" in product["title"] for product in found)
    assert shop.client.get("/openapi.json").status_code == 200
    for path in ("/", "/openapi.json", "/v1/shop", "/v1/products", "/docs", "/redoc", "/docs/oauth2-redirect"):
        answer = shop.client.get(path)
        assert answer.is_success != ("doc" in path), "FastAPI's own pages load scripts from other hosts"
        assert set(re.findall(r"\w+://[^\"'\s)]+", answer.text)) <= {"http://www.w3.org/2000/svg"}, path


def test_a_second_shop_and_a_taken_port_are_refused(shop: Shop) -> None:
    again = shop.job("start", "--port", str(ports.free()))
    assert (again.returncode, again.stdout) == (2, "")
    assert "already runs" in again.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = shop_job(tiny.config(shop.recipe.root / "other"), "start", "--port", str(port))
    assert other.returncode == 2
    assert other.stderr.startswith(f"error: port {port} on 127.0.0.1")
    assert not (shop.recipe.root / "other").exists()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Meanwhile the process does not run: whoever asks it waits in vain."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def replica(shop: Shop, deployment: str) -> psutil.Process:
    """The one replica of a deployment."""
    (found,) = [process for name, process in shop.processes().items() if deployment in name]
    return found


def whole_again(shop: Shop) -> None:
    """Wait until an answer does without nothing."""
    deadline = time.monotonic() + 120
    while shop.recommend(user_id="u01", k=1)["degraded"]:
        assert time.monotonic() < deadline, "the shop does not recover"
        time.sleep(0.5)


def test_stages_that_fail_are_done_without(shop: Shop, chain: Chain) -> None:
    whole = shop.recommend(history=["P0003"], k=60)
    tower, retriever = replica(shop, "UserTower"), replica(shop, "Retriever")
    replica(shop, "Ranker").kill()
    answer = shop.recommend(user_id="u01", k=20)
    scores = [item["retrieval_score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["degraded"] == ["ranker_unavailable"]
    assert all("ranker_unavailable" in item["reasons"] for item in answer["items"])
    assert all(item["probability"] is None for item in answer["items"])
    # meanwhile another ranker starts: the answers below may or may not have one
    unseen = {"profile": {"height_cm": 161.0}, "filters": {"category": ["coat"]}, "exclude": ["P0002"], "k": 20}
    with ThreadPoolExecutor() as callers, ExitStack() as meanwhile:
        with stopped(retriever):
            first = callers.submit(shop.recommend, history=["P0003"], k=60)
            time.sleep(STAGE_S / 2)  # it has a user vector by now, and waits for candidates
            meanwhile.enter_context(stopped(tower))
            second = callers.submit(shop.recommend, **unseen)
            answer = first.result()
        popular = second.result()
    assert set(answer["degraded"]) - {"ranker_unavailable"} == {"ann_unavailable"}
    assert all("ann_unavailable" in item["reasons"] and item["sources"] == ["ann"] for item in answer["items"])
    best = {item["product_id"] for item in whole["items"] if "ann" in item["sources"]}
    assert len(best & {item["product_id"] for item in answer["items"]}) > 0.8 * len(best)
    assert popular["degraded"] == ["user_tower_unavailable"]
    assert all(item["reasons"] == ["popular", "user_tower_unavailable"] for item in popular["items"])
    segment = sources.load_segments(chain.bundle.folder("sources")).popular(np.array([161.0, np.nan], np.float32))
    coats = [row for row in segment.tolist() if tiny.category(row) == "coat" and row % 10 != 9 and row != 2]
    assert [item["product_id"] for item in popular["items"]] == [tiny.product_id(row) for row in coats][:20]
    whole_again(shop)


def test_a_stopped_postgres_is_done_without(shop: Shop, connections: Connections) -> None:
    assert postgres.stop_embedded(shop.recipe.store)
    try:
        with ThreadPoolExecutor() as callers:  # the first of each replica wait longest, and these at the same time
            asked = [
                callers.submit(shop.recommend, k=5, **body) for body in ({"history": ["P0003"]}, {"user_id": "u01"})
            ]
            near = shop.client.get("/v1/products/P0003/similar?k=5").json()
        answer, known = (each.result() for each in asked)
        asked_why = {"product_id": "P0009", "user_id": "u01", "filters": {"price_max": 9}}
        told = shop.client.post("/v1/explain", json=asked_why).json()
        assert shop.client.get("/readyz").status_code == 503
        assert posted(shop, {"event_id": "lost", "client_id": "c"}).status_code == 503
    finally:
        postgres.url(shop.recipe.store)
    assert answer["degraded"] == near["degraded"] == ["ann_unavailable", "prices_unavailable"]
    assert len(near["items"]) == 5
    assert known["degraded"] == ["history_unavailable", "ann_unavailable", "prices_unavailable"]
    assert len(answer["items"]) == len(known["items"]) == 5
    assert known["items"][0]["fit"] is None, "body and sizes are stored"
    assert (told["outcome"], told["degraded"]) == ("unavailable", known["degraded"])
    whole_again(shop)
    with connections.use() as connection:
        connection.execute("SELECT 1")


def test_a_frozen_postgres_is_done_without_in_time(shop: Shop) -> None:
    def timed(number: int) -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        return shop.recommend(user_id=f"u0{number % 10}", k=5), time.monotonic() - began

    with frozen(shop.recipe.store, postmaster=True), ThreadPoolExecutor(16) as callers:
        for _ in range(2):
            found = list(callers.map(timed, range(16)))
            assert {len(answer["items"]) for answer, _ in found} == {5}
            degraded = [set(answer["degraded"]) for answer, _ in found]
            assert all({"history_unavailable", "ann_unavailable"} <= codes for codes in degraded)
            assert max(seconds for _, seconds in found) < DEADLINE_S + 2, "the second is for the proxy's queue"
        refused = list(callers.map(shop.client.get, ["/v1/users/u04", "/v1/products", "/v1/bundles"]))
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in refused] == [(503, str(RETRY_S))] * 3
    whole_again(shop)
    assert shop.client.get("/v1/users/u04").status_code == 200


def test_a_promoted_bundle_takes_over_without_a_failed_request(shop: Shop) -> None:
    old = shop.recommend()["bundle"]
    new = publish.run(tiny.make(tiny.config(shop.recipe.root.parent, seed=23)))["bundle"]
    assert _bundles_until(shop, new) <= {old, new}
    publish.rollback(shop.recipe)
    assert _bundles_until(shop, old) <= {old, new}


def _bundles_until(shop: Shop, wanted: str) -> set[str]:
    """Ask until bundle `wanted` answers; every request must succeed."""
    seen: set[str] = set()
    deadline = time.monotonic() + 120
    while wanted not in seen:
        assert time.monotonic() < deadline
        seen = seen | {shop.recommend(user_id="u01", k=3)["bundle"]}
    assert shop.recommend()["bundle"] == wanted
    return seen


def test_an_experiment_gives_every_shopper_one_bundle(shop: Shop, connections: Connections) -> None:
    active = shop.recommend()["bundle"]
    (tried,) = set(bundle.names(shop.recipe.store)) - {active}
    started = publish.try_out(shop.recipe, tried, 0.5)
    deadline = time.monotonic() + 120
    while shop.recommend(client_id="t0", k=1)["experiment"] is None:
        assert time.monotonic() < deadline, "the shop does not take part"
        time.sleep(0.2)
    arms = {}
    for number in range(12):
        answer = shop.recommend(user_id=f"t{number}", client_id="t", k=3)
        arms[number] = answer["experiment"]["arm"]
        assert answer["experiment"] == {"number": started.number, "arm": started.arm(f"t{number}", None)}
        assert answer["bundle"] == (tried if arms[number] == "treatment" else active)
        shown = {"user_id": f"t{number}", "product_id": answer["items"][0]["product_id"]}
        told = shop.client.post("/v1/explain", json=shown).json()
        assert (told["bundle"], told["outcome"]) == (answer["bundle"], "shown")
    assert set(arms.values()) == {"control", "treatment"}
    nobody = shop.recommend(k=1)
    assert (nobody["bundle"], nobody["experiment"]) == (active, None)
    listed = shop.client.get("/v1/bundles").json()
    assert (listed["active"], listed["experiment"]["treatment"]) == (active, tried)
    assert {each["bundle"]: each["state"] for each in listed["known"]} == {active: "active", tried: "treatment"}
    assert listed["loaded"] == [active, tried]
    for name in (active, tried):
        answer = shop.recommend(user_id="named", k=3, bundle=name)
        assert (answer["bundle"], answer["experiment"], len(answer["items"])) == (name, None, 3)
        shown = {"user_id": "named", "product_id": answer["items"][0]["product_id"], "bundle": name}
        told = shop.client.post("/v1/explain", json=shown).json()
        assert (told["bundle"], told["outcome"]) == (name, "shown")
    refused = shop.client.post("/v1/recommend", json={"bundle": "0" * 12})
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["body", "bundle"])
    assert f"(loaded: {active}, {tried})" in refused.json()["detail"][0]["msg"]
    assert shop.recommend(user_id="named", k=3)["experiment"] is not None
    query = "SELECT count(*) FROM exposures WHERE user_id = 'named'"
    while connections.run(lambda c: c.execute(query).fetchone()) != (1,):
        assert time.monotonic() < deadline, "what the shopper got alone is logged"
        time.sleep(0.1)
    while not (logged := shop.client.get("/v1/users/t0")).json().get("exposures"):
        assert time.monotonic() < deadline, "the list is not logged"
        time.sleep(0.1)
    (kept,) = logged.json()["exposures"]
    assert (kept["experiment"], kept["arm"]) == (started.number, arms[0])
    assert kept["bundle"] == (tried if arms[0] == "treatment" else active)
    experiments.stop(postgres.url(shop.recipe.store), shop.recipe.name)
    treated = next(f"t{number}" for number, arm in arms.items() if arm == "treatment")
    while (answer := shop.recommend(user_id=treated, k=1))["experiment"] is not None:
        assert answer["bundle"] == tried
        assert time.monotonic() < deadline + 60, "the shop goes on"
        time.sleep(0.2)
    assert answer["bundle"] == active


def test_rules_reach_the_running_shop_and_can_be_declined(shop: Shop) -> None:
    body = {"history": ["P0003"], "k": 10}
    plain = [item["product_id"] for item in shop.recommend(**body)["items"]]
    source = (
        "diversity = 0.2\n[caps]\nbrand = 4\n[[pin]]\nproduct = 'P0012'\nposition = 2\n"
        f"[[exclude]]\nproducts = ['{plain[0]}']\n[[bury]]\nprice_max = 20\n"
    )
    database = postgres.url(shop.recipe.store)
    version = rule_versions.apply(database, shop.recipe.name, source).number
    deadline = time.monotonic() + 30
    while (answer := shop.recommend(**body))["rules"] is None:
        assert time.monotonic() < deadline, "the shop does not follow"
        time.sleep(0.2)
    assert answer["rules"] == {"version": version, "left_out": []}
    assert answer["items"][1]["product_id"] == "P0012"
    assert "pinned" in answer["items"][1]["reasons"]
    assert plain[0] not in [item["product_id"] for item in answer["items"]]
    near = shop.client.get("/v1/products/P0003/similar?k=100").json()["items"]
    assert plain[0] not in [item["product_id"] for item in near]
    declined = shop.recommend(**body, rules=False)
    assert ([item["product_id"] for item in declined["items"]], declined["rules"]) == (plain, None)
    left_out = shop.recommend(**body, exclude=["P0012"])["rules"]["left_out"]
    assert left_out == [{"product_id": "P0012", "reason": "excluded"}]
    assert shop.client.get("/readyz").json()["rules"] == {"version": version, "inactive": 0, "problem": False}
    assert shop.client.get("/v1/bundles").json()["rules"] == {"version": version, "inactive": [], "problem": None}
    rule_versions.apply(database, shop.recipe.name, "")
    while shop.recommend(**body)["rules"] is not None:
        assert time.monotonic() < deadline + 30, "the shop does not follow"
        time.sleep(0.2)


def test_a_damaged_bundle_is_said_and_rules_go_on(shop: Shop) -> None:
    database, old = postgres.url(shop.recipe.store), shop.recommend()["bundle"]
    later = tiny.make(tiny.config(shop.recipe.root.parent, seed=29))
    made = assemble.create(later)
    vectors_and_products.vectors(database, made, later.index)
    with damaged(made) as file:
        promote.promote(database, made, later.root, force=True)
        deadline = time.monotonic() + 60
        while (ready := shop.client.get("/readyz")).json()["refused"] is None:
            assert time.monotonic() < deadline, "nobody says so"
            time.sleep(0.2)
        assert (ready.status_code, ready.json()["bundle"], ready.json()["refused"]) == (200, old, made.id)
        assert file not in ready.text, "anybody may ask"
        listed = shop.client.get("/v1/bundles").json()
        assert (listed["serving"], listed["active"], listed["refused"]["bundle"]) == (old, made.id, made.id)
        assert file in listed["refused"]["error"]
        assert shop.recipe.store not in listed["refused"]["error"]
        rule_versions.apply(database, shop.recipe.name, "[[exclude]]\nproducts = ['P0012']\n")
        while shop.recommend(k=1)["rules"] is None:
            assert time.monotonic() < deadline, "the shop does not follow"
            time.sleep(0.2)
        rule_versions.apply(database, shop.recipe.name, "")
        while not re.search(r"^ray_rec_bundle_refused{.*} 1", exported(shop), re.MULTILINE):
            assert time.monotonic() < deadline, "the gauge does not say so"
            time.sleep(0.5)
    assert _bundles_until(shop, made.id) <= {old, made.id}
    publish.rollback(shop.recipe)
    assert _bundles_until(shop, old) <= {old, made.id}
    assert shop.client.get("/v1/bundles").json()["refused"] is None


@pytest.mark.parametrize("without", [["user_tower"], ["ranking"]])
def test_a_stage_can_be_left_out_and_nobody_learns_of_such_a_list(
    shop: Shop, chain: Chain, connections: Connections, without: list[str]
) -> None:
    body = {"client_id": f"without-{without[0]}", "history": ["P0001", "P0007"], "k": 10}
    shop.recommend(**body)
    answer = shop.recommend(**body, without=without)
    local = chain.recommend(Request(history=(Choice("P0001"), Choice("P0007")), k=10, without=frozenset(without)))
    assert [item["product_id"] for item in answer["items"]] == [item["product_id"] for item in local.items]
    assert answer["degraded"] == [], "it was asked for"
    query, deadline = "SELECT count(*) FROM exposures WHERE client_id = %s", time.monotonic() + 30
    while connections.run(lambda c: c.execute(query, (body["client_id"],)).fetchone()) != (1,):
        assert time.monotonic() < deadline, "the whole list alone is logged"
        time.sleep(0.1)
    refused = shop.client.post("/v1/recommend", json={**body, "without": ["retrieval"]})
    assert refused.status_code == 422


def exported(shop: Shop) -> str:
    """The metrics as Prometheus reads them."""
    (session,) = {
        word.partition("=")[2]
        for process in shop.processes().values()
        if "raylet" in process.name()
        for word in process.cmdline()
        if word.startswith("--session_dir=") or word.startswith("--session-dir=")
    }
    (port,) = [file.read_text() for file in Path(session).glob("metrics_export_port_*")]
    return httpx.get(f"http://127.0.0.1:{port.strip()}/metrics", timeout=30).text


def passed_over(shop: Shop) -> dict[str, float]:
    """How much answers have passed over, by kind."""
    found: Counter[str] = Counter()
    for what, count in re.findall(r'^ray_rec_unknown_total{.*what="(\w+)".*} (\S+)$', exported(shop), re.MULTILINE):
        found[what] += float(count)
    return dict(found)


def test_what_the_bundle_lacks_is_passed_over_and_counted(shop: Shop, connections: Connections) -> None:
    """Each kind another number of times."""
    gone = [
        LiveEvent(event_id=f"gone-{number}", client_id="comes-back", product_id=product, event="view", at=tiny.START)
        for number, product in enumerate(["gone-0", "gone-1", "gone-1", "P0003"])
    ]
    assert len(live_events.store(connections, shop.recipe.name, gone).stored) == 4
    before = passed_over(shop)
    asked = {"client_id": "comes-back", "exclude": ["gone-2", "P0004"], "profile": {"weight_kg": 60.0}}
    for _ in range(2):
        assert shop.recommend(**asked, k=5)["degraded"] == []
    shop.recommend(exclude=["gone-2", "gone-3"], k=5)
    shop.recommend(**asked, k=5, without=["ranking"])  # nobody's list
    deadline = time.monotonic() + 60
    expected = {what: before.get(what, 0) + count for what, count in (("event", 6), ("exclude", 4), ("profile", 2))}
    while passed_over(shop) != expected:
        assert time.monotonic() < deadline, (before, passed_over(shop))
        time.sleep(1)


def test_ray_exports_what_the_shop_counts(shop: Shop) -> None:
    wanted = [
        'ray_rec_requests_total{.*route="/v1/recommend".*status="2xx"',
        'ray_rec_requests_total{.*route="/v1/users/{user_id}".*status="4xx"',
        'ray_rec_stage_ms_bucket{.*stage="retrieval"',
        'ray_rec_stage_ms_bucket{.*stage="wait"',
        'ray_rec_candidates_total{.*source="cooccurrence"',
        *(f'ray_rec_funnel_total{{.*step="{step}"' for step in ("candidates", "ranked", "shown")),
        'ray_rec_shoppers_total{.*events="(1|2-4|5-19)"',
        "ray_rec_nearest_bucket{",
        'ray_rec_events_total{.*outcome="repeated"',
        'ray_rec_exposures_total{.*outcome="logged"',
        'ray_rec_unknown_total{.*what="event"',
        'ray_rec_index_recall_bucket{.*filter="stock"',
        "ray_rec_rules_version{",
        "ray_rec_bundle_refused{",
        *(
            f'ray_rec_degraded_total{{(?=.*cause="{cause}").*reason="{reason}_unavailable"'
            for reason, cause in [
                *((reason, r"\w+") for reason in ("ranker", "ann", "prices")),
                *(("user_tower", "late"), ("history", "database")),
            ]
        ),
    ]
    deadline = time.monotonic() + 60
    while True:
        found = exported(shop)
        missing = [each for each in wanted if not re.search(each.replace("{user_id", r"\{user_id"), found)]
        if not missing:
            return
        assert time.monotonic() < deadline, (
            missing,
            [x for x in found.splitlines() if x.startswith("ray_rec")][:40],
        )
        time.sleep(1)


def test_nothing_to_serve_is_said_at_once(new_store: Callable[[], Path]) -> None:
    recipe = tiny.config(new_store())
    done = shop_job(recipe, "start", "--port", str(ports.free()))
    assert done.returncode == 2
    assert "no bundle is active" in done.stderr
    assert "jobs/pipeline.py" in done.stderr
    assert list(Path(recipe.store).iterdir()) == []
