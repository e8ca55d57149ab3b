"""The engine for OpenAI-compatible endpoints: faults, repair, pace, money; and embedded llama.cpp's own server."""

import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from rec import dataset
from rec.config import Config, Enrich, load
from rec.enrich import llamacpp, openai, stage
from rec.enrich.openai import KEY_VARIABLE, MAX_FAILURES, OpenAI
from rec.errors import ConfigError, EndpointError, EngineError
from rec.schema import ENRICHED
from tests.certificate import certificate
from tests.enrich.conftest import COATS, write_products
from tests.enrich.endpoint import Endpoint, Response, chat, sensible, serve

KEY = "sk-a-secret-of-the-shop"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def options(endpoint: Endpoint, *more: str) -> list[str]:
    return ['enrich.engine="openai"', 'enrich.model="m"', f'enrich.base_url="{endpoint.url}"', *more]


def engine(endpoint: Endpoint, *more: str) -> OpenAI:
    return OpenAI(load("demo", options(endpoint, *more)).enrich, None, KEY)


FAULTS = {
    "rate limit": Response(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "1"}),
    "server error": Response(500, b"oops"),
    "overloaded": Response(503, b"", {"Retry-After": "0.1"}),
    "torn body": Response(200, chat('{"a": 1}').body, drop=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(fault: str) -> None:
    started = time.monotonic()
    with serve(lambda number, _: FAULTS[fault] if number < 2 else chat('{"a": 1}')) as endpoint:
        answer = engine(endpoint).complete("?", SCHEMA, 10)
    assert (answer.text, answer.finished) == ('{"a": 1}', True)
    assert len(endpoint.asked) == 3
    assert fault != "rate limit" or time.monotonic() - started >= 2, "Retry-After is kept"


@pytest.mark.parametrize(
    "nonsense",
    [b"<html>", b"null", b'"x"', b'{"choices": []}', b'{"choices": [{"message": null}]}'],
)
def test_a_body_that_is_no_completion_is_a_failed_call(nonsense: bytes) -> None:
    with serve(lambda *_: Response(body=nonsense)) as endpoint, pytest.raises(EngineError, match="gave no answer"):
        engine(endpoint, "enrich.max_retries=0").complete("?", SCHEMA, 10)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_client_stops_at_once_and_keeps_its_key(status: int) -> None:
    filler = "x" * 120  # the message is cut in the midst of the key
    said = json.dumps({"error": {"message": f"{filler} Incorrect API key provided: {KEY}"}}).encode()
    with serve(lambda *_: Response(status, said)) as endpoint, pytest.raises(EndpointError) as refused:
        engine(endpoint).complete("?", SCHEMA, 10)
    assert len(endpoint.asked) == 1
    assert f"check {KEY_VARIABLE}, enrich.base_url and enrich.model" in str(refused.value)
    assert KEY[:12] not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_endpoint_that_is_down_is_noticed() -> None:
    with serve(sensible) as endpoint:
        client = engine(endpoint, "enrich.max_retries=0")
    for _ in range(MAX_FAILURES - 1):
        with pytest.raises(EngineError, match="gave no answer: APIConnectionError") as failed:
            client.complete("?", SCHEMA, 10)
        assert not isinstance(failed.value, EndpointError)
    with pytest.raises(EndpointError, match=f"no answer to {MAX_FAILURES} prompts in a row"):
        client.complete("?", SCHEMA, 10)


def secured(folder: Path, *, days: int) -> tuple[ssl.SSLContext, list[str | None]]:
    """A context with a certificate of localhost, which clients trust as long as it is valid; and whom it was asked."""
    key, signed = certificate("localhost", folder, days=days)
    context, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(signed, key)
    context.sni_callback = lambda _, name, __: asked.append(name)
    return context, asked


@pytest.mark.parametrize("days", [-1, 1])
def test_an_expired_certificate_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Neither the SDK's repetitions nor more prompts mend it."""
    context, asked = secured(tmp_path, days=days)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "signed.pem"))
    with serve(lambda *_: chat('{"a": 1}'), context) as endpoint:
        if days > 0:
            assert engine(endpoint).complete("?", SCHEMA, 10).text == '{"a": 1}'
            return
        with pytest.raises(EndpointError) as refused:
            engine(endpoint).complete("?", SCHEMA, 10)
    assert (asked, endpoint.asked) == (["localhost"], [])
    assert str(refused.value) == (
        "the certificate of the endpoint localhost is not accepted (certificate has expired): renew it, or name in "
        "SSL_CERT_FILE, on every node, a file with the authority that signed it"
    )


def test_a_certificate_is_told_of_also_by_an_sdk_that_wraps_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(lambda *_: chat('{"a": 1}')) as endpoint:
        made = engine(endpoint)

        def wraps(**_: Any) -> None:
            request = httpx.Request("POST", endpoint.url)
            raise made._sdk.APIConnectionError(request=request) from EndpointError("the certificate is not accepted")

        monkeypatch.setattr(made._client.chat.completions, "create", wraps)
        with pytest.raises(EndpointError, match=r"^the certificate is not accepted$"):
            made.complete("?", SCHEMA, 10)


def test_a_slow_endpoint_is_given_up() -> None:
    def slow(*_: Any) -> Response:
        time.sleep(2)
        return chat("{}")

    with serve(slow) as endpoint, pytest.raises(EngineError, match="APITimeoutError"):
        engine(endpoint, "enrich.max_retries=0", "enrich.timeout_s=0.3").complete("?", SCHEMA, 10)


@pytest.mark.parametrize(("wrong", "named"), [('{"a": "x"}', r"$.a: 'x' is not of type"), ("Sure! a is 1", "no JSON")])
def test_an_answer_that_does_not_fit_is_repaired_once(wrong: str, named: str) -> None:
    with serve(lambda number, _: chat(wrong if number == 0 else '{"a": 2}', "x" * 37)) as endpoint:
        answer = engine(endpoint).complete("?", SCHEMA, 10)
    assert answer.text == '{"a": 2}'
    assert answer.tokens_in == 20, "both attempts are counted"
    _, said, told = endpoint.asked[1]["messages"]
    assert (said["role"], said["content"]) == ("assistant", wrong)
    assert named in told["content"]

    with serve(lambda *_: chat(wrong)) as endpoint:
        assert engine(endpoint).complete("?", SCHEMA, 10).text == wrong
    assert len(endpoint.asked) == 2, "one attempt, not more"


def test_a_failed_repair_leaves_the_first_answer() -> None:
    with serve(lambda number, _: chat("no", "x" * 37) if number == 0 else Response(400, b"{}")) as endpoint:
        answer = engine(endpoint).complete("?", SCHEMA, 10)
    assert (answer.text, answer.tokens_in) == ("no", 10)


def test_a_server_that_does_not_count_is_taken_for_the_most() -> None:
    whole = json.loads(chat('{"a": 1}').body) | {"usage": None}
    with serve(lambda *_: Response(body=json.dumps(whole).encode())) as endpoint:
        answer = engine(endpoint).complete("how many?", SCHEMA, 10)
    assert (answer.tokens_in, answer.tokens_out) == (len("how many?"), len('{"a": 1}'))


def test_prompts_that_are_refused_do_not_make_the_endpoint_down() -> None:
    with serve(lambda *_: Response(400, b'{"error": {"message": "too long"}}')) as endpoint:
        client = engine(endpoint)
        for _ in range(MAX_FAILURES + 1):
            with pytest.raises(EngineError, match="refuses this prompt") as failed:
                client.complete("?", SCHEMA, 10)
            assert not isinstance(failed.value, EndpointError)


def test_a_cut_answer_is_not_repaired() -> None:
    with serve(lambda *_: chat('{"a": ', finish="length")) as endpoint:
        assert not engine(endpoint).complete("?", SCHEMA, 10).finished
    assert len(endpoint.asked) == 1


def test_requests_hold_schema_cap_and_further_fields() -> None:
    with serve(lambda *_: chat('{"a": 1}')) as endpoint:
        engine(endpoint, "enrich.request={seed=3}").complete("?", SCHEMA, 10)
    (asked,) = endpoint.asked
    assert asked["response_format"]["json_schema"] == {"name": "attributes", "strict": True, "schema": SCHEMA}
    assert (asked["max_tokens"], asked["seed"], asked["model"]) == (10, 3, "m")
    assert "temperature" not in asked
    assert endpoint.keys == {f"Bearer {KEY}"}


def test_the_key_is_not_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(lambda number, _: FAULTS["server error"] if number < 1 else chat('{"a": 1}')) as endpoint:
        engine(endpoint).complete("?", SCHEMA, 10)
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert "/chat/completions" in caplog.text, "nothing was logged at all"
    assert KEY not in caplog.text


def test_what_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    openai.require("")
    monkeypatch.delenv(KEY_VARIABLE)
    openai.require("http://localhost:8080/v1")
    with pytest.raises(EngineError, match=f"{KEY_VARIABLE} is not set: export"):
        openai.require("")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EngineError, match=r"openai is not installed: `pip install 'shop-rec\[openai\]'`"):
        openai.require("http://localhost:8080/v1")
    with pytest.raises(ConfigError, match="'m' is not carried by a package"):
        load("demo", ['enrich.model="m"'])


def statuses(config: Config) -> dict[str, str]:
    return {row["product_id"]: row["status"] for row in dataset.read(config.at("enriched"), ENRICHED).to_pylist()}


def shirts(count: int) -> list[dict[str, Any]]:
    """Products of distinct texts."""
    return [
        {"product_id": f"S{i:03}", "title": f"Shirt number{i}", "description": f"Crisp cotton with trim{i} number{i}."}
        for i in range(count)
    ]


@pytest.fixture
def ask(tmp_path: Path, fresh: str, ray_local: None) -> Callable[..., Config]:
    """Configuration of a store of `products` that asks an endpoint; further arguments are overrides."""

    def make(endpoint: Endpoint, products: list[dict[str, Any]], *more: str) -> Config:
        config = load(
            "demo", [f"store={tmp_path}", "enrich.answers=[]", "enrich.max_calls=1000", *options(endpoint, *more)]
        )
        write_products(config, products)
        return config

    return make


@pytest.mark.slow
def test_two_workers_keep_one_pace_and_ask_each_text_once(ask: Callable[..., Config]) -> None:
    with serve(sensible) as endpoint:
        config = ask(endpoint, [*COATS, *shirts(16)], "enrich.num_actors=2", "enrich.requests_per_minute=600")
        facts = stage.run(config)
    assert facts["live_calls"] == 4 + 16
    assert len(endpoint.titles) == len(set(endpoint.titles)) == 20
    assert endpoint.arrived[-1] - endpoint.arrived[0] >= 19 * 0.1 * 0.95
    found = dataset.read(config.at("enriched"), ENRICHED).to_pylist()
    assert {r["model"] for r in found if r["product_id"] != "A3"} == {"m"}
    (hood,) = [r for r in found if r["product_id"] == "S003"]
    assert ("detail", "number3", "llm") in [(a["key"], a["value"], a["source"]) for a in hood["re"]]


@pytest.mark.slow
def test_a_wrong_key_ends_the_job_and_what_was_answered_is_kept(
    ask: Callable[..., Config], fresh: str, tmp_path: Path, repository: Path
) -> None:
    refuse = Response(401, b'{"error": {"message": "no such key"}}')
    with serve(lambda number, asked: sensible(number, asked) if number < 2 else refuse) as endpoint:
        config = ask(endpoint, shirts(6), "enrich.concurrency=1")
        overrides = [f"store={tmp_path}", "enrich.answers=[]", *options(endpoint, "enrich.concurrency=1")]
        job = subprocess.run(
            [sys.executable, "jobs/enrich.py", *[part for one in overrides for part in ("--set", one)]],
            cwd=repository, env={**os.environ, "REC_DATABASE_URL": fresh}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert job.returncode == 2, job.stderr[-2_000:]
    assert job.stderr.splitlines()[-1].startswith("error: the endpoint 127.0.0.1, model 'm' refuses every call")
    assert KEY not in job.stderr
    assert not config.at("enriched").exists()
    with psycopg.connect(fresh) as connection:
        assert connection.execute("SELECT count(*) FROM llm_answers").fetchone() == (2,)


@pytest.mark.slow
@pytest.mark.long
def test_an_expired_certificate_ends_the_job(
    ask: Callable[..., Config], fresh: str, tmp_path: Path, repository: Path
) -> None:
    context, asked = secured(tmp_path, days=-1)
    with serve(sensible, context) as endpoint:
        config = ask(endpoint, shirts(6))
        overrides = [f"store={tmp_path}", "enrich.answers=[]", *options(endpoint, "enrich.num_actors=1")]
        job = subprocess.run(
            [sys.executable, "jobs/enrich.py", *[part for one in overrides for part in ("--set", one)]], cwd=repository,
            env={**os.environ, "REC_DATABASE_URL": fresh, "SSL_CERT_FILE": str(tmp_path / "signed.pem")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert job.returncode == 2, job.stderr[-2_000:]
    assert job.stderr.splitlines()[-1].startswith(
        "error: the certificate of the endpoint localhost is not accepted (certificate has expired): renew it"
    )
    assert KEY not in job.stderr
    assert 1 <= len(asked) <= config.enrich.concurrency
    assert not config.at("enriched").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_job_asks_nothing_again_that_was_answered(
    ask: Callable[..., Config], fresh: str, tmp_path: Path, repository: Path
) -> None:
    def slow(number: int, asked: dict[str, Any]) -> Response:
        time.sleep(0.4)
        return sensible(number, asked)

    with serve(slow) as endpoint:
        config = ask(endpoint, shirts(20), "enrich.concurrency=2")
        overrides = [f"store={tmp_path}", "enrich.answers=[]", *options(endpoint, "enrich.concurrency=2")]
        command = [sys.executable, "jobs/enrich.py", *[part for one in overrides for part in ("--set", one)]]
        with (tmp_path / "log").open("wb") as log:
            job = subprocess.Popen(
                command, cwd=repository, env={**os.environ, "REC_DATABASE_URL": fresh}, stdout=log, stderr=log
            )
            while len(endpoint.asked) < 6:
                assert job.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.02)
            os.kill(job.pid, signal.SIGKILL)
            job.wait()
        time.sleep(2)  # the orphaned worker ends with its Ray, and what it still gets is its own
        with psycopg.connect(fresh) as connection:
            answered = connection.execute("SELECT count(*) FROM llm_calls").fetchone()
        before = len(endpoint.asked)
        facts = stage.run(config)
    assert answered is not None
    assert 0 < answered[0] < 20
    assert facts["live_calls"] == 20 - answered[0]
    assert set(endpoint.titles) == {row["title"] for row in shirts(20)}
    assert len(endpoint.titles) - len(set(endpoint.titles)) <= before - answered[0], "only what was in flight"


@pytest.mark.slow
def test_the_budget_is_hard_and_counts_earlier_runs(ask: Callable[..., Config]) -> None:
    """Every answer needs a repair, the dearest case."""
    prices = ["enrich.price_in=1000", "enrich.price_out=2000", "enrich.max_output_tokens=64"]

    def clumsy(number: int, asked: dict[str, Any]) -> Response:
        repair = len(asked["messages"]) > 1
        said = sensible(number, asked) if repair else chat("x" * 200, asked["messages"][0]["content"])
        return said

    with serve(clumsy) as endpoint:
        first = stage.run(ask(endpoint, shirts(12), *prices, "enrich.max_cost=12"))
        assert 0 < first["cost"] <= 12
        assert 0 < first["live_calls"] < 12
        assert first["live_calls"] + first["over_budget"] == 12
        config = ask(endpoint, shirts(12), *prices, "enrich.max_cost=12", "enrich.max_text_chars=1199")
        assert stage.run(config)["live_calls"] == 0
        assert set(statuses(config).values()) == {"ok", "partial"}
        rest = stage.run(ask(endpoint, shirts(12), *prices))
    assert rest["live_calls"] == 12 - first["live_calls"]
    assert rest["over_budget"] == 0


@pytest.mark.slow
def test_a_dry_run_tells_the_tokens_and_asks_nothing(ask: Callable[..., Config]) -> None:
    prices = ["enrich.price_in=1", "enrich.price_out=4"]
    with serve(sensible) as endpoint:
        guessed = stage.estimate(ask(endpoint, shirts(40), *prices))
        assert (guessed["to_ask"], guessed["estimated_from_calls"], endpoint.asked) == (40, 0, [])
        stage.run(ask(endpoint, shirts(40), *prices, "enrich.max_calls=5"))
        config = ask(endpoint, shirts(40), *prices)
        told = stage.estimate(config)
        assert (told["products"], told["cached"], told["to_ask"], told["estimated_from_calls"]) == (40, 5, 35, 5)
        assert len(endpoint.asked) == 5
        real = stage.run(config)
    assert real["live_calls"] == 35
    for name, estimated in (("live_tokens_in", told["tokens_in"]), ("live_tokens_out", told["tokens_out"])):
        assert estimated == pytest.approx(real[name], rel=0.15)
    assert told["cost"] == pytest.approx(real["cost"], rel=0.15)


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """URL of llama.cpp's own OpenAI-compatible server with the embedded model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(llamacpp.model_path("gemma3-270m"))
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = [KEY]
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server  # it lives as long as its object


@pytest.mark.slow
def test_a_real_server_answers_in_the_form_of_the_schema(ask: Callable[..., Config], llama: str) -> None:
    """One field is left for the model to conclude: each costs this one seconds."""
    there = Endpoint(sensible)
    there.url = llama
    given = [*COATS[0]["attributes"], ("occasion", ["party"]), ("vibe", ["elegant"])]
    coats = [{**COATS[0], "attributes": given}, *COATS[1:]]
    config = ask(there, coats, "enrich.max_calls=1", "enrich.max_output_tokens=120", "enrich.concurrency=2")
    facts = stage.run(config)
    assert (facts["live_calls"], facts["failed_calls"]) == (1, 0)
    assert facts["live_tokens_in"] > 300
    (asked,) = [row for row in dataset.read(config.at("enriched"), ENRICHED).to_pylist() if row["product_id"] == "A1"]
    assert asked["status"] in ("ok", "partial"), asked["reason"]
    assert asked["prompt_version"] == "chat-1"
    with pytest.raises(EndpointError, match="refuses every call"):
        OpenAI(config.enrich, None, "wrong").complete("?", SCHEMA, 4)


def test_options_of_speed_change_nothing_of_the_work() -> None:
    fast = Enrich(concurrency=64, requests_per_minute=9.0, base_url="http://x/v1", num_actors=3)
    assert fast.identity() == Enrich().identity()
