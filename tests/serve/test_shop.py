"""The real shop: Ray Serve, Postgres and HTTP, from `start` to `stop`.

The last tests of the file kill parts of the shop; the order of the file is the order of its life.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from rec import postgres, publish
from rec.index import rule_versions
from rec.index.connections import Connections
from rec.recommend.chain import Chain
from rec.recommend.request import MAX_CONTEXT_CHARS, MAX_HISTORY, Choice, Request
from rec.schema import EVENTS
from serve import api
from tests.bundle import tiny
from tests.serve.conftest import REPOSITORY, Shop, free_port, shop_job

pytestmark = pytest.mark.slow

Problem = tuple[dict[str, Any], list[Any]]


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
    assert get_args(api.Event.model_fields["event"].annotation) == EVENTS


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


def test_rules_reach_the_running_shop_and_can_be_declined(shop: Shop, tmp_path: Path) -> None:
    body = {"history": ["P0003"], "k": 10}
    plain = [item["product_id"] for item in shop.recommend(**body)["items"]]
    rules = tmp_path / "rules.toml"
    rules.write_text(
        "diversity = 0.2\n[caps]\nbrand = 4\n[[pin]]\nproduct = 'P0012'\nposition = 2\n"
        f"[[exclude]]\nproducts = ['{plain[0]}']\n[[bury]]\nprice_max = 20\n"
    )
    options = ["--set", f"store={shop.recipe.store}", "--set", f"name={shop.recipe.name}"]
    command = [sys.executable, "jobs/rules.py", "apply", str(rules), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)["version"]
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
    assert shop.client.get("/readyz").json()["rules"] == {"version": version, "inactive": [], "problem": None}
    rule_versions.apply(postgres.url(shop.recipe.store), shop.recipe.name, "")
    while shop.recommend(**body)["rules"] is not None:
        assert time.monotonic() < deadline + 30, "the shop does not follow"
        time.sleep(0.2)


def test_the_page_is_whole_and_asks_nobody_else(shop: Shop) -> None:
    page = shop.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "innerHTML" not in page.text
    assert not [part for part in page.text.split("http")[1:] if not part.startswith("://www.w3.org/2000/svg")]
    facts = shop.client.get("/v1/shop").json()
    assert facts["categories"] == sorted(tiny.CATEGORIES)
    assert facts["users"][0]["recent"]
    assert facts["profile_ranges"]["height_cm"] == [50, 250]
    assert all(f'id="{name}"' in page.text for name in facts["profile_ranges"]), "the page bounds an input of each"
    found = shop.client.get("/v1/products", params={"query": "원피스", "limit": 3}).json()["items"]
    assert len(found) == 3
    assert all("원피스" in product["title"] for product in found)
    assert shop.client.get("/openapi.json").status_code == 200


def test_a_second_shop_and_a_taken_port_are_refused(shop: Shop) -> None:
    again = shop.job("start", "--port", str(free_port()))
    assert (again.returncode, again.stdout) == (2, "")
    assert "already runs" in again.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = shop_job(tiny.config(shop.recipe.root / "other"), "start", "--port", str(port))
    assert other.returncode == 2
    assert other.stderr.startswith(f"error: port {port} on 127.0.0.1")
    assert not (shop.recipe.root / "other").exists()


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


def test_a_killed_ranker_means_retrieval_order(shop: Shop) -> None:
    (ranker,) = [p for name, p in shop.processes().items() if "Ranker" in name]
    ranker.kill()
    answer = shop.recommend(user_id="u01", k=20)
    scores = [item["retrieval_score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all("ranker_unavailable" in item["reasons"] for item in answer["items"])
    assert all(item["probability"] is None for item in answer["items"])
    deadline = time.monotonic() + 120
    while "ranker_unavailable" in shop.recommend(user_id="u01", k=1)["items"][0]["reasons"]:
        assert time.monotonic() < deadline, "the ranker did not come back"
        time.sleep(0.5)


def test_stop_ends_the_shop_and_nothing_else(shop: Shop, connections: Connections) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    driver = min((p for p in shop.processes().values()), key=lambda process: process.create_time())
    driver.send_signal(signal.SIGKILL)  # as rudely as can be
    done = shop.job("stop")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["postgres"] is False, "this process still uses it"
    assert "connections of others use it" in done.stderr
    connections.close()
    assert json.loads(shop.job("stop").stdout) == {"processes": 0, "postgres": True}
    assert shop.processes() == {}
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert json.loads(shop.job("status").stdout) == {"running": False, "url": None}
    assert json.loads(shop.job("stop").stdout) == {"processes": 0, "postgres": False}


def test_nothing_to_serve_is_said_at_once(new_store: Callable[[], Path]) -> None:
    recipe = tiny.config(new_store())
    done = shop_job(recipe, "start", "--port", str(free_port()))
    assert done.returncode == 2
    assert "no bundle is active" in done.stderr
    assert "jobs/pipeline.py" in done.stderr
    assert list(Path(recipe.store).iterdir()) == []
