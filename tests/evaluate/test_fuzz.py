"""The benchmark `fuzz`: what is drawn, what is counted of it, and all of it on a small shop."""

import argparse
import asyncio
import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from jobs import benchmark as job
from rec import artifact
from rec.config import load as recipe
from rec.errors import ConfigError, RecError
from rec.evaluate import fuzz, fuzzed_requests
from rec.evaluate.fuzz import Tally
from rec.evaluate.fuzzed_requests import Known, Sent
from rec.evaluate.load import LATE, LOST
from serve.api import ExplainBody, RecommendBody
from serve.app import app
from tests.bundle import tiny
from tests.evaluate.local_server import served

KNOWN = Known(["P0001", "P0002"], ["dress"], ["u01"])
REPOSITORY = Path(__file__).resolve().parents[2]
STUB = """\
#!/usr/bin/env python3
import json, sys, urllib.error, urllib.request
told = dict(zip(sys.argv, sys.argv[1:]))
try:
    status = urllib.request.urlopen(sys.argv[2].replace("openapi.json", "v1/users/nobody")).status
except urllib.error.HTTPError as error:
    status = error.code
answer = {"status_code": status, "headers": {}, "elapsed": 0.1}
recorder = {"label": "GET /v1/users/{user_id}", "interactions": {"1": {"request": {}, "response": answer}}}
with open(told["--report-ndjson-path"], "w") as report:
    for event in ({"EngineStarted": {}}, {"ScenarioFinished": {"recorder": recorder}}):
        report.write(json.dumps(event) + "\\n")
"""
"""Stands in for Schemathesis where that is not installed: one request, and the report of it."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that answers with the status that is the path; /lost has none, /retry is 503 with Retry-After."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        what = request.path.strip("/")
        if what == "lost":
            assert request.transport is not None
            request.transport.abort()
        if what == "slow":
            await asyncio.sleep(2)
        headers = {"Retry-After": "2"} if what == "retry" else {}
        return web.Response(status=int(what) if what.isdigit() else 503, headers=headers, text="told")

    with served("/{what}", answer) as address:
        yield address


@pytest.fixture(scope="module")
def drawn() -> list[Sent]:
    return fuzzed_requests.drawn(fuzzed_requests.requests(KNOWN), 400, 7)


def test_the_same_seed_draws_the_same_requests(drawn: list[Sent]) -> None:
    assert len(drawn) == 400
    again, other = (fuzzed_requests.drawn(fuzzed_requests.requests(KNOWN), 50, seed) for seed in (7, 8))
    assert len(again) == 50
    assert again == fuzzed_requests.drawn(fuzzed_requests.requests(KNOWN), 50, 7)
    assert again != other


def test_every_operation_of_the_api_is_drawn_and_no_other(drawn: list[Sent]) -> None:
    found, all_ = {request.operation for request in drawn}, set(fuzz._operations(app.openapi()))
    for seed in range(12):  # one seed may repeat itself
        if found == all_:
            break
        found |= {sent.operation for sent in fuzzed_requests.drawn(fuzzed_requests.requests(KNOWN), 300, seed)}
    assert found == all_


def test_every_field_and_query_parameter_is_drawn() -> None:
    missing = {
        (operation, name)
        for operation, body in (("POST /v1/recommend", RecommendBody), ("POST /v1/explain", ExplainBody))
        for name in body.model_fields
    } | {
        (f"{method.upper()} {path}", each["name"])
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        for each in operation.get("parameters", [])
        if each["in"] == "query"
    }
    assert ("GET /v1/products", "evidence") in missing
    for seed in range(12):  # one seed may repeat itself
        for sent in fuzzed_requests.drawn(fuzzed_requests.requests(KNOWN), 300, seed):
            body = json.loads(sent.body) if _legible(sent.body) else None
            named = {*parse_qs(urlsplit(sent.target).query, keep_blank_values=True)}
            named |= set(body) if isinstance(body, dict) else set()
            missing -= {(sent.operation, name) for name in named}
        if not missing:
            break
    assert missing == set()


def test_what_is_drawn_is_good_and_bad(drawn: list[Sent]) -> None:
    bodies = [request.body for request in drawn if request.operation.startswith("POST")]
    legible = [json.loads(body) for body in bodies if _legible(body)]
    assert len(bodies) / 4 < len(legible) < len(bodies)
    assert any(isinstance(body, dict) and body.get("history") for body in legible)
    assert max(body.count(b"[") + body.count(b"{") for body in bodies) > 100
    assert any(not _utf8(body) for body in bodies)
    assert len({request.headers.get("Content-Type") for request in drawn}) > 2
    assert all(request.target.isascii() and " " not in request.target for request in drawn)


def _legible(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_answers_are_counted_and_what_failed_is_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "TIMEOUT_S", 0.5)
    told = Tally()
    paths = ["200", "200", "422", "503", "retry", "retry", "500", "lost", "slow"]
    sent = [Sent("POST /x", "POST", f"/{path}?%FF", {"X": "é"}, b"\xff") for path in paths]
    asyncio.run(fuzz._send(url, sent, 3, told))
    assert (told.requests, told.operations) == (9, {"POST /x": 9})
    assert told.statuses == {200: 2, 422: 1, 503: 1, 500: 1, LOST: 1, LATE: 1}
    assert (told.refused, told.of(2), told.of(4)) == (2, 2, 1)
    assert told.slowest_s >= 0.5
    kept = {failure["number"]: failure for failure in told.failures}
    assert {number: failure["status"] for number, failure in kept.items()} == {3: 503, 6: 500, 7: LOST, 8: LATE}
    assert kept[6]["answer"] == "told"
    again = Sent("POST /x", "POST", kept[6]["target"], kept[6]["headers"], base64.b64decode(kept[6]["body_base64"]))
    assert again == sent[6], "it can be sent again"


def test_a_report_of_schemathesis_is_counted() -> None:
    def interaction(status: int | None, **headers: str) -> dict[str, Any]:
        answer = {"status_code": status, "headers": {name: [value] for name, value in headers.items()}, "elapsed": 0.25}
        return {"request": {"method": "GET", "uri": "u"}, "response": None if status is None else answer}

    answered = [interaction(200), interaction(500), interaction(503), interaction(None)]
    refused = {"request": {}, "response": {"status_code": 503, "headers": {"retry-after": ["2"]}, "elapsed": 0}}
    recorder = {"label": "GET /v1/shop", "interactions": dict(enumerate([*answered, refused]))}
    told = Tally()
    for event in ({"ScenarioStarted": {}}, {"ScenarioFinished": {"recorder": recorder}}):
        fuzz._reported(event, told)
    assert (told.operations, told.refused) == ({"GET /v1/shop": 5}, 1)
    assert told.statuses == {200: 1, 500: 1, 503: 1, LOST: 1}
    assert [failure["status"] for failure in told.failures] == [500, 503, LOST]


def test_an_answer_that_the_document_does_not_have_is_counted_and_kept_apart_from_failures() -> None:
    def check(name: str, message: str | None) -> dict[str, Any]:
        failure = {} if message is None else {"failure_info": {"failure": {"message": message}}}
        return {"name": name, "status": "success" if message is None else "failure", **failure}

    def interaction(status: int) -> dict[str, Any]:
        return {"request": {"uri": "u"}, "response": {"status_code": status, "headers": {}, "elapsed": 0.1}}

    recorder = {
        "label": "GET /v1/shop",
        "interactions": {name: interaction(status) for name, status in zip("abcd", (200, 418, 500, 200), strict=True)},
        "checks": {
            "a": [check(name, None) for name in ("not_a_server_error", *fuzz.CONFORMANCE)],
            "b": [check("status_code_conformance", "Received: 418"), check("content_type_conformance", "Received: x")],
            "c": [check("not_a_server_error", "Server error")],
        },
    }
    told = Tally()
    fuzz._reported({"ScenarioFinished": {"recorder": recorder}}, told)
    assert (told.requests, told.undeclared, told.of(4)) == (4, 1, 1)
    assert [failure["status"] for failure in told.failures] == [500]
    (kept,) = told.contradictions
    assert (kept["status"], kept["request"]["uri"], kept["answer"]["status_code"]) == (418, "u", 418)
    assert kept["undeclared"] == {
        "status_code_conformance": "Received: 418",
        "content_type_conformance": "Received: x",
    }


def test_tracebacks_are_found_with_what_stands_around_them() -> None:
    line = "Traceback (most recent call last):"
    found = fuzz._tracebacks(f"one\ntwo\n{line}\n  File x\nKeyError: 1\nthree\n{line}\nValueError\n")
    assert len(found) == 2
    assert found[0].startswith(f"one\ntwo\n{line}\n  File x\nKeyError: 1")


def test_what_is_missing_or_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install schemathesis"):
        fuzz.measure(recipe("demo", []), tmp_path, [], requests=1)
    _stub(tmp_path)
    monkeypatch.setenv("REC_RATE_LIMIT", "5")
    with pytest.raises(ConfigError, match="REC_RATE_LIMIT"):
        fuzz.measure(recipe("demo", []), tmp_path, [], requests=1)
    monkeypatch.setenv("REC_DATABASE_URL", "postgresql://elsewhere/x")
    with pytest.raises(ConfigError, match="REC_DATABASE_URL"):
        fuzz.measure(recipe("demo", []), tmp_path, [], requests=1)


def test_a_schemathesis_that_fails_is_an_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_got", lambda address: {"paths": {"/": {"get": {"parameters": [1]}}}})
    program = _stub(tmp_path, "#!/bin/sh\necho no such option >&2\nexit 2\n")
    with pytest.raises(RecError, match="code 2: no such option"):
        fuzz._schemathesis(program, url, tmp_path, 10, 1, Tally())


def test_what_fails_lies_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [{"status": 500, "target": "/옷"}, {"traceback": "x\ny"}]
    figures = {"fuzz.5xx": {"value": 1, "ci95": None, "goal": 0, "unit": "answers"}}
    monkeypatch.setattr(job, "prepare", lambda config, last: None)
    monkeypatch.setattr(job.fuzz, "measure", lambda *_, requests: (figures, failures))
    told: dict[str, Any] = {
        "html": str(tmp_path / "fuzz.html"),
        "seeds": 1,
        "control_seeds": 0,
        "minutes": 1,
        "rate": 1,
        "apart_rate": None,
    }
    told |= {"name": "fuzz", "quick": True, "recipe": "demo", "overrides": []}
    result = job.run(recipe("demo", []), argparse.Namespace(**told))
    assert (result["figures"], result["failures"]) == (figures, failures)
    lines = (tmp_path / "fuzz.failures.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == failures
    assert "fuzz.5xx" in (tmp_path / "fuzz.html").read_text(encoding="utf-8")


def _stub(folder: Path, source: str = STUB) -> str:
    program = folder / "schemathesis"
    program.write_text(source, encoding="utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.mark.long
def test_a_small_shop_is_asked_and_stays_whole(
    new_store: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny.make(tiny.config(new_store()))
    if shutil.which("schemathesis") is None:
        _stub(tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    before = artifact.peek(made.at("users"))
    arguments = ["--set", f"store={made.store}", "--set", f"name={made.name}"]
    figures, failures = fuzz.measure(made, REPOSITORY / "jobs" / "shop.py", arguments, requests=300)
    found = {name.removeprefix("fuzz."): value["value"] for name, value in figures.items()}
    assert failures == []
    bad = ("5xx", "undeclared", "unanswered", "restarts", "tracebacks")
    assert {name: found[name] for name in bad} == dict.fromkeys(bad, 0)
    assert found["requests.schemathesis"] > 0
    assert found["requests"] == found["2xx"] + found["4xx"] + found["refused"] >= 300
    assert min(found["2xx"], found["4xx"]) > 20
    assert not (Path(made.store) / "postgres").exists(), "the recipe's own database is not touched"
    assert artifact.peek(made.at("users")) == before
