"""What nobody should send, over HTTP: refused by name and without what was sent, and the next one is answered."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rec.recommend.request import MAX_HISTORY
from serve import api
from tests.serve.conftest import Shop
from tests.serve.ill import dripped, flooded, unread

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/json"}
PATHS = ("/v1/recommend", "/v1/explain", "/v1/events")
LEVELS = 30_000
NESTED = b"[" * LEVELS + b"]" * LEVELS
ILLEGIBLE = {
    "deep": NESTED,
    "deep and open": b"[" * 2 * LEVELS,
    "deep in a field": b'{"context": ' + NESTED + b"}",
    "deep in an unknown field": b'{"wishes": ' + NESTED + b"}",
    "deep objects": b'{"a":' * 10_000,
    "no UTF-8": b'{"context": "\xff\xfe"}',
    "Latin-1": '{"context": "é"}'.encode("latin-1"),
    "a number of 5,000 digits": b'{"k": ' + b"9" * 5_000 + b"}",
}


@pytest.fixture(autouse=True)
def unharmed(shop: Shop) -> Iterator[None]:
    """Whatever was sent, no server has gone and the next request is answered as ever."""
    before = {process.pid for name, process in shop.processes().items() if "ServeReplica" in name}
    yield
    assert shop.recommend(user_id="u04", k=3)["degraded"] == []
    assert before == {process.pid for name, process in shop.processes().items() if "ServeReplica" in name}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", ILLEGIBLE.values(), ids=list(ILLEGIBLE))
def test_a_body_that_cannot_be_read_is_400(shop: Shop, path: str, body: bytes) -> None:
    answer = shop.client.post(path, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (400, "bad_request")
    assert len(answer.content) < 200, "nothing of it comes back"


def test_what_is_deep_and_legible_is_422(shop: Shop) -> None:
    nested = b"[" * 200 + b"]" * 200
    for body in (nested, b'{"history": ' + nested + b"}", b'{"wishes": ' + nested + b"}"):
        assert shop.client.post("/v1/recommend", content=body, headers=JSON).status_code == 422


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense", None],
)
def test_a_body_that_is_not_said_to_be_json_is_415(shop: Shop, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    for path in PATHS:
        answer = shop.client.post(path, content=b'{"k": 3}', headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (415, "unsupported_media_type")
        assert "application/json" in answer.json()["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/a+json"])
def test_json_by_any_of_its_names_is_answered(shop: Shop, content_type: str) -> None:
    answer = shop.client.post("/v1/recommend", content=b'{"k": 3}', headers={"content-type": content_type})
    assert (answer.status_code, len(answer.json()["items"])) == (200, 3)


@pytest.mark.parametrize("k", [0, -1, 10**6, 10**30, 2.5, True, "3e1", None])
def test_a_count_beyond_its_bounds_is_422_wherever_it_stands(shop: Shop, k: Any) -> None:
    for path, field in (
        ("/v1/products/P0003/similar", "k"),
        ("/v1/explain?product_id=P0003", "k"),
        ("/v1/products", "limit"),
    ):
        answer = shop.client.get(path, params={"product_id": "P0003", field: "" if k is None else str(k)})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", field]), answer.text
    for path in PATHS[:2]:
        if k is not True:  # JSON's true is 1
            answer = shop.client.post(path, json={"product_id": "P0003", "k": k})
            assert answer.status_code == 422, answer.text


def test_a_history_may_be_empty_and_not_longer_than_its_limit(shop: Shop) -> None:
    assert [item["product_id"] for item in shop.recommend(history=[], k=5)["items"]] == [
        item["product_id"] for item in shop.recommend(k=5)["items"]
    ]
    assert shop.recommend(history=["P0003"] * MAX_HISTORY, k=5)["items"]
    for told in ("P0003", {"product_id": "P0003"}):
        answer = shop.client.post("/v1/recommend", json={"history": [told] * (MAX_HISTORY + 1)})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "history"])


def test_a_history_tells_nothing_of_the_future(shop: Shop) -> None:
    """As events; a clock may be a little ahead."""
    now = datetime.now(UTC)
    for path in PATHS[:2]:
        for at, status in (
            (now - timedelta(days=1), 200),
            (now + api.CLOCK_SKEW / 2, 200),
            (now + 10 * api.CLOCK_SKEW, 422),
            (datetime.max.replace(tzinfo=UTC), 422),
            (api.FIRST_EVENT - timedelta(seconds=1), 422),
        ):
            told = [{"product_id": "P0003", "at": at.isoformat()}]
            answer = shop.client.post(
                path, json={"product_id": "P0005", "history": told} if "explain" in path else {"history": told}
            )
            assert answer.status_code == status, (at, answer.text)
            if status == 422:
                assert ["body", "history", 0, "Event", "at"] in [each["loc"] for each in answer.json()["detail"]]


def test_who_and_what_is_unknown_is_a_stranger_or_404(shop: Shop) -> None:
    new = shop.recommend(k=5)["items"]
    for who in ({"user_id": "nobody"}, {"client_id": "nobody"}, {"user_id": "' OR 1=1 --", "client_id": "../../etc"}):
        assert [item["product_id"] for item in shop.recommend(**who, k=5)["items"]] == [i["product_id"] for i in new]
    assert shop.recommend(exclude=["gone", "\u202e"], k=5)["items"]
    assert shop.client.post("/v1/recommend", json={"history": ["gone"]}).status_code == 404
    for path in ("/v1/products/gone/similar", "/v1/users/never-here", "/v1/users/%FF%FE", "/v1/users/a%2F..%2Fb"):
        assert shop.client.get(path).status_code == 404
    for path in ("/v1/users/%00", f"/v1/users/{'x' * 201}"):
        assert shop.client.get(path).status_code == 422


def test_who_sends_a_body_byte_by_byte_is_408(shop: Shop) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    assert dripped(shop, head + b"content-length: 999\r\n\r\n", b" ") == b"HTTP/1.1 408"


def test_of_a_flood_some_are_answered_and_the_others_told_when_to_ask_again(shop: Shop) -> None:
    flooded(shop)


def test_who_does_not_read_an_answer_keeps_nobody_waiting(shop: Shop) -> None:
    unread(shop)
