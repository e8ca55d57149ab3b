"""Keys, rates, origins and request ids, over ASGI; what the environment may say of them."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rec import api_keys
from rec.errors import ConfigError
from serve import guard
from serve.app import app
from serve.guard import Buckets, Cors, Guard, Observe
from serve.limits import LimitBody

ONE, OTHER = "k" * 16, "another-key-of-the-shop"
Client = Callable[..., TestClient]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """Makes a client of a small application behind the layers, under environment variables."""

    def make(**variables: str) -> TestClient:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        app = FastAPI()
        for layer in (Guard, Cors, Observe):
            app.add_middleware(layer)
        app.get("/healthz")(lambda: {"status": "ok"})
        app.get("/v1/users/{user_id}")(lambda user_id: {"user": user_id})
        return TestClient(app, base_url="http://127.0.0.1:8000")

    return make


def bearer(key: str) -> dict[str, str]:
    """Headers with a key."""
    return {"Authorization": f"Bearer {key}"}


def test_without_keys_nobody_needs_one(client: Client) -> None:
    assert client().get("/v1/users/ann").status_code == 200


def test_with_keys_everybody_needs_one_but_probes(client: Client) -> None:
    made = client(REC_API_KEYS=f"{ONE}, {OTHER}")
    for headers in ({}, bearer(""), bearer("wrong"), bearer(ONE + "x"), {"Authorization": ONE}, bearer("\xe9")):
        refused = made.get("/v1/users/ann", headers={name: value.encode("latin-1") for name, value in headers.items()})
        assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
    for key in (ONE, OTHER):
        assert made.get("/v1/users/ann", headers=bearer(key)).status_code == 200
    assert made.get("/healthz").status_code == 200
    assert made.get("/nowhere").status_code == 401


OWN = ["127.0.0.1", "127.0.0.1:8000", "127.1.2.3:8000", "localhost", "localhost:9000", "LocalHost:9000", "[::1]:8000"]
OTHERS = [
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000", "10.0.0.3:8000"),
    *("0.0.0.0:8000", "[::]:8000", "[fe80::1]", "localhost:x", "localhost:8000:8000", "evil@127.0.0.1", "::1", "", "["),
]


@pytest.mark.parametrize("host", [*OWN, *OTHERS])
def test_without_keys_a_page_whose_name_leads_to_this_machine_reads_nothing(client: Client, host: str) -> None:
    made = client()
    answer = made.get("/v1/users/ann", headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == (200 if host in OWN else 421)
    if host in OTHERS:
        assert set(answer.json()) == {"error", "message"}
        assert answer.json()["error"] == "misdirected_request"
        assert "127.0.0.1" in answer.json()["message"]
        assert "REC_API_KEYS" in answer.json()["message"]
    assert made.get("/healthz", headers={"Host": host}).status_code == 200, "a probe asks by the address of a pod"


def test_with_keys_the_host_is_no_matter(client: Client) -> None:
    made = client(REC_API_KEYS=ONE)
    assert made.get("/v1/users/ann", headers={"Host": "shop.example", **bearer(ONE)}).status_code == 200
    assert made.get("/v1/users/ann", headers={"Host": "shop.example"}).status_code == 401


def test_no_key_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REC_API_KEYS", f"{ONE},{OTHER}")
    found = api_keys.access()
    assert [found.key(key) for key in (ONE, OTHER, None, "", ONE[:-1], "\udce9")] == [0, 1, None, None, None, None]
    assert ONE not in repr(found)


@pytest.mark.parametrize("given", [ONE, OTHER, "wrong", None])
def test_a_key_is_compared_with_each_in_constant_time_also_after_it_is_found(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REC_API_KEYS", f"{ONE},{OTHER}")
    found, compared = api_keys.access(), []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(api_keys, "hmac", SimpleNamespace(compare_digest=compare_digest))
    assert found.key(given) == {ONE: 0, OTHER: 1}.get(given or "")
    assert [key for _, key in compared] == list(found.keys)
    assert {(type(one), len(one)) for pair in compared for one in pair} == {(bytes, 32)}, "hashes of one length"


def test_keys_may_stand_in_a_file(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ONE}\n{OTHER}\n", encoding="ascii")
    made = client(REC_API_KEYS=f"@{file}")
    assert made.get("/v1/users/ann", headers=bearer(OTHER)).status_code == 200
    assert made.get("/v1/users/ann").status_code == 401


def test_each_key_has_a_rate_of_its_own(client: Client) -> None:
    made = client(REC_API_KEYS=f"{ONE},{OTHER}", REC_RATE_LIMIT="0.02")
    assert made.get("/v1/users/ann", headers=bearer(ONE)).status_code == 200
    refused = made.get("/v1/users/ann", headers=bearer(ONE))
    assert (refused.status_code, refused.json()["error"]) == (429, "too_many_requests")
    assert 40 <= int(refused.headers["retry-after"]) <= 50
    assert made.get("/v1/users/ann", headers=bearer(OTHER)).status_code == 200
    assert made.get("/healthz").status_code == 200


def test_a_key_has_a_rate_where_none_is_set_and_this_machine_alone_has_none(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api_keys.access().rate is None
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: 10.0, perf_counter=time.perf_counter))
    made = client(REC_API_KEYS=f"{ONE},{OTHER}")
    most = int(api_keys.PUBLIC_RATE)
    answers = [made.get("/v1/users/ann", headers=bearer(ONE)).status_code for _ in range(most + 2)]
    assert answers == [200] * most + [429] * 2
    assert made.get("/v1/users/ann", headers=bearer(OTHER)).status_code == 200
    monkeypatch.setenv("REC_RATE_LIMIT", "1e9")
    assert api_keys.access().rate == 1e9, "who sets one gets it"


def test_a_bucket_lets_through_its_rate() -> None:
    buckets = Buckets(4.0)
    assert [buckets.take(0, 10.0) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    assert buckets.take(0, 10.25) == 0
    assert buckets.take(0, 10.3) == pytest.approx(0.2)
    assert sum(buckets.take(1, 100 + at / 100) == 0 for at in range(1_000)) == 4 + 39


def test_pages_of_other_origins_may_not_ask_unless_named(client: Client) -> None:
    page = {"Origin": "https://shop.example"}
    asking = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    closed = client()
    assert closed.options("/v1/users/ann", headers=asking).status_code == 400
    assert "access-control-allow-origin" not in closed.get("/v1/users/ann", headers=page).headers
    opened = client(REC_CORS_ORIGINS="https://shop.example", REC_API_KEYS=ONE)
    allowed = opened.options("/v1/users/ann", headers=asking)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    other = opened.get("/v1/users/ann", headers={"Origin": "https://evil.example", **bearer(ONE)})
    assert "access-control-allow-origin" not in other.headers


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Client:
    """Makes a client of the application that Serve runs, without its deployment, under environment variables."""

    def make(**variables: str) -> TestClient:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(app, "middleware_stack", None)  # made by the first request, of what the environment says
        return TestClient(app, base_url="http://127.0.0.1:8000")

    return make


def test_the_application_lets_no_other_origin_ask_unless_named(real: Client) -> None:
    page = {"Origin": "https://shop.example"}
    asking = {**page, "Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
    closed = real()
    assert closed.options("/v1/users/ann", headers=asking).status_code == 400
    told = closed.get("/openapi.json", headers=page)
    assert (told.status_code, told.json()["info"]["title"]) == (200, "shop-rec")
    assert not [name for name in told.headers if name.startswith("access-control-allow")]
    assert closed.get("/openapi.json", headers={"Host": "evil.example"}).status_code == 421
    opened = real(REC_CORS_ORIGINS="https://shop.example", REC_API_KEYS=ONE)
    allowed = opened.options("/v1/users/ann", headers=asking)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    evil = {"Origin": "https://evil.example"}
    assert opened.options("/v1/users/ann", headers=asking | evil).status_code == 400
    answers = [opened.get("/openapi.json", headers={**origin, **bearer(ONE)}) for origin in (page, evil)]
    assert [answer.headers.get("access-control-allow-origin") for answer in answers] == ["https://shop.example", None]


def test_the_application_asks_for_a_key_and_bounds_its_rate(real: Client) -> None:
    made = real(REC_API_KEYS=f"{ONE},{OTHER}", REC_RATE_LIMIT="0.02")
    assert made.delete("/v1/users/ann").status_code == 401
    answers = [made.get("/openapi.json", headers=bearer(key)) for key in (ONE, ONE, OTHER)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert int(answers[1].headers["retry-after"]) >= 40
    assert made.post("/v1/recommend", headers=bearer(ONE), content=b" " * 100_000).status_code == 429


def test_a_request_is_logged_without_what_is_in_it(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard.log, "handlers", [caplog.handler])  # Ray's loggers may not propagate
    caplog.set_level(logging.INFO, logger=guard.log.name)
    made = client(REC_API_KEYS=ONE)
    made.get("/v1/users/ann?height=172", headers={"X-Request-ID": "mine", **bearer(ONE)})
    made.get("/v1/users/ann")
    assert made.get("/v1/users/ann", headers={"X-Request-ID": "a b\t"}).status_code == 400
    lines = [json.loads(message.partition(" ")[2]) for message in caplog.messages if message.startswith("request ")]
    assert [line["status"] for line in lines] == [200, 401, 400]
    assert {name: lines[0][name] for name in ("request_id", "method", "route")} == {
        "request_id": "mine",
        "method": "GET",
        "route": "/v1/users/{user_id}",
    }
    assert lines[2]["request_id"] == "invalid"
    assert not [word for word in ("ann", "172", ONE) if word in caplog.text]


def asked(app: ASGIApp, *messages: Message, then: Message | None = None) -> list[Message]:
    """What an application sends to a POST whose caller sends `messages`, and `then`, or nothing more."""
    waiting, sent = list(messages), []

    async def receive() -> Message:
        if not waiting and then is None:
            await asyncio.Event().wait()
        return waiting.pop(0) if waiting else then

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_slow_body_is_408_and_a_caller_who_hangs_up_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def reached(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("a part of a body was handed on")

    monkeypatch.setattr(guard.log, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, logger=guard.log.name)
    app = Observe(LimitBody(reached, max_bytes=100, within_s=0.05))
    part = {"type": "http.request", "body": b"{", "more_body": True}
    assert [message["status"] for message in asked(app, part)[:1]] == [408]
    assert asked(app, part, then={"type": "http.disconnect"}) == []
    lines = [json.loads(message.partition(" ")[2]) for message in caplog.messages]
    assert [line["status"] for line in lines] == [408, guard.CLOSED]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"REC_API_KEYS": "short"}, r"key 1 of REC_API_KEYS must be 16 to 200 characters"),
        ({"REC_API_KEYS": f"{ONE},{ONE} x"}, "key 2 of REC_API_KEYS"),
        ({"REC_API_KEYS": "@/nowhere/keys"}, "names /nowhere/keys, which is no file of keys"),
        ({"REC_API_KEYS": "@/dev/null"}, "has no key: write one a line"),
        ({"REC_RATE_LIMIT": "many"}, "REC_RATE_LIMIT is 'many': give the requests a second"),
        ({"REC_RATE_LIMIT": "-1"}, "REC_RATE_LIMIT is '-1'"),
        ({"REC_RATE_LIMIT": "nan"}, "REC_RATE_LIMIT is 'nan'"),
        ({"REC_CORS_ORIGINS": "*"}, r"REC_CORS_ORIGINS has '\*'"),
        ({"REC_CORS_ORIGINS": "https://shop.example/page"}, "no path"),
    ],
)
def test_a_variable_that_says_nothing_is_refused(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        api_keys.access()


@pytest.mark.parametrize(
    ("host", "open_"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.3", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_only_this_machine_needs_no_key(host: str, open_: bool) -> None:
    nobody, somebody = api_keys.Access((), None, ()), api_keys.Access((b"digest",), None, ())
    api_keys.check_bind(host, somebody)
    if open_:
        api_keys.check_bind(host, nobody)
    else:
        with pytest.raises(ConfigError, match="set REC_API_KEYS"):
            api_keys.check_bind(host, nobody)
