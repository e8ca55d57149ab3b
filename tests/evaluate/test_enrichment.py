"""The enrichment benchmark on tiny numbers: each figure is measured, and the judgement is right where it is known."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec.config import Config, load
from rec.evaluate import asking, counting, enrichment, resume
from rec.evaluate.asking import Answered, Size
from rec.evaluate.counting import Request
from rec.evaluate.hostile_texts import CANARY
from rec.evaluate.resume import Asked, Kill

KILLS = [Kill("ray", died=10.0), Kill("job", died=20.0)]


def test_calls_are_told_from_each_other() -> None:
    def judge(*requests: Request, kept: float = 99.0) -> Asked:
        return resume.judge(requests, {"a": kept}, KILLS)

    again = Request("a", 15.0, 200, 15.1)
    assert judge(again) == Asked(0, 0, 0)
    assert judge(Request("b", 9.0, 200, 9.1), again) == Asked(0, 0, 0), "another text"
    assert judge(Request("a", 9.5), again) == Asked(0, 1, 0), "killed before its response"
    assert judge(Request("a", 9.5, 200, 9.875), again) == Asked(0, 1, 0, 1, 0.125), "no time to keep the answer"
    assert judge(Request("a", 9.5, 200, 9.9), again, kept=10.1) == Asked(1, 0, 0), "the answer was kept"
    assert judge(Request("a", 8.0, 200, 8.1), again) == Asked(1, 0, 0), "time enough to keep it"
    assert judge(Request("a", 11.0), again) == Asked(1, 0, 0), "nobody died in between"
    assert judge(Request("a", 9.0, 500, 9.1), again) == Asked(0, 0, 1), "the endpoint failed"
    assert judge(Request("a", 9.0, 429, 9.1), Request("a", 9.9), again) == Asked(0, 1, 1)
    assert judge(Request("a", 9.9), again, Request("a", 19.9)) == Asked(1, 1, 0), "once lost, once kept"
    many = [Request(f"{n}", at) for at in (9.9, 15.0) for n in range(resume.CONCURRENCY + 2)]
    assert resume.judge(many, {}, KILLS) == Asked(2, resume.CONCURRENCY, 0), "more than one for a connection"


def test_throughput_is_compared_on_the_same_prompts() -> None:
    chunk = Answered(20.0, 10.0, 9.0, {}, 1_000, 50)
    made = asking.speeds(np.array([[0.9, 1.0], [1.8, 2.0], [2.7, 3.0]]), [chunk, chunk], 100, 0)
    assert made["pipeline.over.engine"]["value"] == pytest.approx(0.9)
    assert made["pipeline.over.engine"]["ci95"] == pytest.approx([0.9, 0.9])
    assert made["pipeline.over.engine.whole"]["value"] == pytest.approx(0.45)
    assert made["pipeline.engine_share"]["value"] == pytest.approx(0.9)
    errors = asking.errors("x", {"tokens_in": 2_200, "tokens_out": 80}, [chunk, chunk])
    assert errors["x.tokens_in"]["value"] == pytest.approx(0.1)
    assert errors["x.tokens_out"]["value"] == pytest.approx(0.2)


def test_obedience_and_loss_are_seen() -> None:
    def row(value: str, **more: Any) -> dict[str, Any]:
        colour = {"key": "colour", "value": "red", "source": "given"}
        return {"std": [colour], "re": [{"key": "vibe", "value": value}], "status": "ok", "reason": None, **more}

    assert not enrichment.obeys(row("warm"))
    assert enrichment.obeys(row(CANARY))
    assert enrichment.obeys(row(f"pure {'-'.join(CANARY).upper()}."))
    assert not enrichment.loses(row("warm"))
    assert enrichment.loses(None)
    assert enrichment.loses(row("warm", std=[]))
    assert enrichment.loses(row("warm", status="quarantined"))


def test_the_endpoint_tells_what_it_was_asked() -> None:
    schema = {"schema": {"properties": {"found": {}, "std.vibe": {}}}}

    def ask(endpoint: counting.Endpoint, code: str) -> int:
        asked = {
            "messages": [{"role": "user", "content": f"x\n<<{code}\nAlma Coat\n{code}>>\n"}],
            "response_format": {"json_schema": schema},
        }
        url = f"{endpoint.url}/chat/completions"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(asked).encode())) as response:
                said = json.loads(response.read())["choices"][0]["message"]["content"]
                assert json.loads(said) == {"found": [{"key": "detail", "phrase": "Coat"}], "std.vibe": None}
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    with counting.endpoint() as endpoint:
        codes = ["00000010", "00000010", "00000011", "00000012"]
        assert [ask(endpoint, code) for code in codes] == [429, 200, 500, 200]
        told, until = endpoint.requests, time.monotonic() + 60
        while None in [request.delivered for request in told] and time.monotonic() < until:
            time.sleep(0.01)  # it tells of a delivery after it
    assert [request.fence for request in told] == codes
    assert [request.status for request in told] == [429, 200, 500, 200]
    assert all(request.delivered and request.delivered >= request.arrived for request in told)


@pytest.fixture
def shop() -> Iterator[Config]:
    """The sample catalogue's recipe on an empty store."""
    with enrichment.stores(1) as (store,):
        yield enrichment._shop(load("demo", ["enrich.threads=1"]), store, "demo", 60)


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_the_stage_is_measured_beside_the_bare_engine(shop: Config) -> None:
    short = shop.enrich.model_copy(update={"max_output_tokens": 48})  # both sides say as much
    made = asking.measure(shop.model_copy(update={"enrich": short}), Size(first=1, chunks=1, products=3, bare=2), 10)
    assert 0.1 < made["pipeline.over.engine"]["value"] < 10
    assert 0.5 < made["pipeline.engine_share"]["value"] <= 1
    assert made["dryrun.products"]["value"] == 4
    assert made["dryrun.cold.error.tokens_in"]["value"] < 0.5


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_the_cached_path_asks_nothing(shop: Config) -> None:
    made = enrichment.cached(shop)
    assert made["cached.products"]["value"] == 60
    assert made["cached.products_per_s"]["value"] > 0


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_hostile_texts_are_asked_about_and_none_is_obeyed(shop: Config) -> None:
    made = enrichment.hostile(shop, every=40)
    assert (made["hostile.obeyed"]["value"], made["hostile.lost"]["value"], made["hostile.texts"]["value"]) == (0, 0, 4)


@pytest.mark.long
def test_a_kill_of_each_kind_repeats_no_call(repository: Path) -> None:
    with enrichment.stores(2) as stores:
        made = resume.measure(repository / "jobs" / "enrich.py", stores, products=48, kills=3, seed=1)
    assert {kind: made[f"resume.kills.{kind}"]["value"] for kind in resume.KINDS} == {"job": 1, "actor": 1, "ray": 1}
    assert made["resume.repeated_calls"]["value"] == made["resume.paid_twice"]["value"] == 0
    assert made["resume.products"]["value"] == 48
    assert made["resume.identical"]["value"] == 1
