"""The engine vllm as far as it goes without a GPU: request, answer, configuration, and the stage around vLLM's own."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import ray

from rec import dataset, postgres
from rec.config import Config, load
from rec.enrich import backfill, engine, llamacpp, stage, stream, vllm
from rec.enrich.completion import REPAIR_BYTES, Completion
from rec.enrich.pace import Meter
from rec.enrich.text import canonical
from rec.enrich.workers import question
from rec.errors import ConfigError, EngineError
from rec.schema import ENRICHED
from rec.vocab.std import StdVocabulary
from tests.enrich import served
from tests.enrich.conftest import COATS, write_products
from tests.enrich.endpoint import Response, chat, sensible, serve

VLLM = ['enrich.engine="vllm"', 'enrich.model="Qwen/Qwen3-8B"', "enrich.max_output_tokens=600"]


def asked_of(row: dict[str, Any]) -> dict[str, Any]:
    """A product as a row of vllm.QUESTION."""
    whole = {"html": None, "attributes": [], **row}
    enrich = load("demo", VLLM).enrich
    made = question(whole, canonical(whole, enrich.max_text_chars), StdVocabulary.load(None), engine.form(enrich))
    assert made is not None
    blank = dict.fromkeys(vllm.QUESTION.names)
    return {**blank, "key": row["product_id"], "question": made.prompt, "schema": json.dumps(made.schema)}


def test_a_request_is_a_conversation_and_a_schema_as_text() -> None:
    enrich = load("demo", VLLM).enrich
    row = asked_of(COATS[0])
    made = vllm.request(row, enrich)
    assert made["messages"] == [{"role": "user", "content": row["question"]}]
    assert "Alma Coat" in row["question"]
    assert made["sampling_params"] == {
        "temperature": 0.0,
        "max_tokens": 600,
        "structured_outputs": {"json": row["schema"]},
    }
    again = vllm.request({**row, "first": "[]", "problem": "$: [] is not of type 'object'"}, enrich)
    assert [message["role"] for message in again["messages"]] == ["user", "assistant", "user"]
    assert again["messages"][1]["content"] == "[]"
    assert "is not of type 'object'" in again["messages"][2]["content"]


def test_schemas_of_different_products_survive_arrow_side_by_side() -> None:
    enrich = load("demo", VLLM).enrich
    rows = [asked_of(COATS[0]), asked_of({**COATS[1], "attributes": [("occasion", ["party"])]})]
    requests = [vllm.request(row, enrich) for row in rows]
    back = pa.Table.from_pylist(requests).to_pylist()
    assert back == requests
    schemas = [json.loads(made["sampling_params"]["structured_outputs"]["json"]) for made in back]
    assert schemas[0]["required"] != schemas[1]["required"]


OBJECT = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


@pytest.mark.parametrize(
    ("text", "tokens", "finished", "problem"),
    [
        ('{"a": 1}', 5, True, None),
        ('{"a": 1}', 10, True, None),
        ('{"a": 1', 10, False, None),
        ('{"a": "x"}', 5, True, "$.a"),
        ("", 0, True, "no JSON"),
    ],
)
def test_an_answer_is_cut_when_it_is_as_long_as_it_may_be_and_does_not_fit(
    text: str, tokens: int, finished: bool, problem: str | None
) -> None:
    out = {"generated_text": text, "num_input_tokens": 7, "num_generated_tokens": tokens, "time_taken_llm": 0.5}
    row = vllm.answered({**dict.fromkeys(vllm.QUESTION.names), "schema": OBJECT, **out, "metrics": {}, "prompt": "x"})
    made, said = vllm.completion(row, 10)
    assert made == Completion(text, finished, 7, tokens)
    assert (said is None) == (problem is None)
    assert problem is None or problem in str(said)


WRONG = {
    "engine_kwargs may not hold model, quantization": ('enrich.vllm.engine_kwargs={model="m", quantization="fp8"}',),
    "leaves no room for a prompt": ("enrich.vllm.max_model_len=600",),
    "is a file of llama.cpp": ('enrich.model="gemma3-270m"',),
    "unknown option 'enrich.vllm.tensor_parallel'": ("enrich.vllm.tensor_parallel=2",),
    "option 'enrich.vllm.engine_kwargs.dtype": ('enrich.vllm.engine_kwargs={dtype=["half"]}',),
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_options_are_named(said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("demo", [*VLLM, *WRONG[said]])


def test_what_changes_answers_is_part_of_the_identity_of_this_engine_alone() -> None:
    base = load("demo", VLLM).enrich.identity()
    assert base != load("demo", [*VLLM, 'enrich.vllm.quantization="fp8"']).enrich.identity()
    assert base == load("demo", [*VLLM, "enrich.vllm.tensor_parallel_size=2"]).enrich.identity()
    assert "vllm" not in load("demo").enrich.identity()


def test_single_prompts_are_refused() -> None:
    with pytest.raises(EngineError, match="vllm serve"):
        engine.load(load("demo", VLLM).enrich)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_machine_without_vllm_is_told_what_to_install() -> None:
    with pytest.raises(EngineError, match=r"pip install '\.\[vllm\]'"):
        engine.require(load("demo", VLLM).enrich)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the name; nothing here imports it."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("there", "option", "said"),
    [
        ({"CPU": 4.0}, "tensor_parallel_size=1", r"needs 1 GPUs .* has 0: start GPU nodes"),
        ({"GPU": 1.0}, "tensor_parallel_size=2", r"needs 2 GPUs .*tensor_parallel_size=2 .* has 1"),
        ({"GPU": 4.0, "CPU": 2.0}, "tensor_parallel_size=1", "1 GPUs needs 3 CPUs, the Ray cluster has 2"),
        (
            {"GPU": 4.0, "CPU": 4.0, "accelerator_type:L4": 1.0},
            'accelerator_type="H100"',
            "'H100': the Ray cluster has L4",
        ),
        ({"GPU": 4.0, "CPU": 4.0, "accelerator_type:L4": 1.0}, 'accelerator_type="L4"', None),
    ],
)
def test_a_cluster_without_the_gpus_is_refused(
    there: dict[str, float], option: str, said: str | None, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    enrich = load("demo", [*VLLM, f"enrich.vllm.{option}"]).enrich
    if said is None:
        engine.require(enrich)
    else:
        with pytest.raises(EngineError, match=said):
            engine.require(enrich)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder in the place of a model's, so that nothing is looked for on the network."""
    folder = tmp_path / "model"
    folder.mkdir()
    return str(folder)


def test_a_batch_that_ray_repeats_is_paid_once(fresh: str) -> None:
    """As after the death of the actor that commits; no Ray here. The prices are 0: all money comes back, but once."""
    enrich = load("demo", VLLM).enrich
    with postgres.connect(fresh, autocommit=True) as connection:
        backfill.prepare(connection, enrich.model, engine.form(enrich), StdVocabulary.load(None))
    row = {"content_hash": "h", "prompt_bytes": 9, "share": 1.0, "most": 4.0, "seconds": 0.1, vllm.ERROR: ""}
    rows = [
        {**asked_of(COATS[0]), **row, "text": '{"found": 1}', "tokens_in": 7, "tokens_out": 3},
        {**asked_of(COATS[1]), **row, "text": '{"found": []', "tokens_in": 7, "tokens_out": 600},
    ]
    money: Any = Meter(None, None, 10.0)
    assert money.admit(4.0)
    assert money.admit(4.0)
    commit = stream.Commit(enrich, fresh, "run", money)
    first = commit(pa.Table.from_pylist(rows))
    assert first["first"].to_pylist() == ['{"found": 1}', None], "one is to be repaired, one is cut"
    assert commit(pa.Table.from_pylist(rows)) == first
    assert ledger(fresh) == [(7, 3), (7, 600)]
    assert not money.admit(6.1, wait=False), "of what was put aside, only the cut answer's is back"
    repaired = {**first.to_pylist()[0], "seconds": 0.1, vllm.ERROR: "", "tokens_in": 9, "tokens_out": 4}
    inferred = dict.fromkeys(json.loads(repaired["schema"])["required"])
    repair = pa.Table.from_pylist([{**repaired, "text": json.dumps({**inferred, "found": []})}])
    assert commit(repair) == commit(repair)
    assert ledger(fresh) == [(7, 3), (7, 600), (9, 4)]
    assert money.admit(10.0, wait=False)
    assert not money.admit(0.1, wait=False)


@pytest.mark.slow
def test_the_options_reach_rays_processor(model: str, ray_local: None) -> None:
    options = [
        "enrich.num_actors=3",
        "enrich.vllm.tensor_parallel_size=2",
        'enrich.vllm.accelerator_type="H100"',
        "enrich.vllm.batch_size=16",
        'enrich.vllm.quantization="fp8"',
        "enrich.vllm.engine_kwargs={gpu_memory_utilization=0.8}",
        "enrich.vllm.chat_template_kwargs={enable_thinking=false}",
    ]
    made: Any = vllm.processor(load("demo", [*VLLM, f'enrich.model="{model}"', *options]).enrich)
    assert made.list_stage_names() == ["ChatTemplateStage", "TokenizeStage", "vLLMEngineStage", "DetokenizeStage"]
    template = made.get_stage_by_name("ChatTemplateStage").fn_constructor_kwargs
    assert template["chat_template_kwargs"] == {"enable_thinking": False}
    given = made.get_stage_by_name("vLLMEngineStage").get_dataset_map_batches_kwargs(16, "__data")
    arguments = given["fn_constructor_kwargs"]["engine_kwargs"]
    assert (
        arguments.items()
        >= {
            "max_model_len": 4096,
            "tensor_parallel_size": 2,
            "quantization": "fp8",
            "gpu_memory_utilization": 0.8,
            "distributed_executor_backend": "ray",
        }.items()
    )
    assert given["fn_constructor_kwargs"]["should_continue_on_error"]
    around = [made.get_stage_by_name(f"{name}Stage").map_batches_kwargs for name in ("ChatTemplate", "Tokenize")]
    around += [made.get_stage_by_name("DetokenizeStage").map_batches_kwargs]
    around += [made.preprocess_map_kwargs, made.postprocess_map_kwargs]
    ours = 2 * vllm.STEP_CPUS
    assert ours + sum(step["num_cpus"] for step in around) <= vllm.NEEDED_CPUS, "all steps run at once"
    assert (given["batch_size"], given["accelerator_type"], given["compute"].max_size) == (16, "H100", 3)


@pytest.fixture
def run(
    coats: Callable[..., Config], fresh: str, model: str, installed: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Runs the stage with the endpoint at a URL for a GPU. Returns its result, and its rows by product id."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0, "CPU": 4.0})

    def make(
        url: str, *more: str, rows: list[dict[str, Any]] = COATS, key: str = ""
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        config = coats(*VLLM, f'enrich.model="{model}"', "enrich.vllm.batch_size=2", *more)
        write_products(config, rows)
        with monkeypatch.context() as patch:
            patch.setattr(vllm, "processor", served.by(url, key))
            result = stage.run(config)
        return result, {row["product_id"]: row for row in dataset.read(config.at("enriched"), ENRICHED).to_pylist()}

    return make


def ledger(url: str) -> list[tuple[int, int]]:
    """Tokens in and out of all calls that the ledger knows."""
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT tokens_in, tokens_out FROM llm_calls ORDER BY called_at").fetchall()


def troubled(number: int, asked: dict[str, Any]) -> Response:
    """No answer for the coat, a bad one for the dress until it is sent back, always a bad one for the shirt, a cut one
    for the last."""
    prompt = asked["messages"][0]["content"]
    if "Alma Coat" in prompt.split("<<")[-1]:
        return Response(400, b"too long")
    repairs = len(asked["messages"]) > 1
    if "Vera Dress" in prompt.split("<<")[-1]:
        return sensible(number, asked) if repairs else chat('{"found": "nothing"}', prompt)
    if "Alma Shirt" in prompt.split("<<")[-1]:
        return chat('{"found": [1]}', prompt)
    return chat('{"found": [' + "x" * 2_400, prompt)


@pytest.mark.slow
def test_every_answer_is_committed_once_and_a_failed_row_fails_nothing_else(
    run: Callable[..., Any], fresh: str, ray_local: None
) -> None:
    with serve(troubled) as endpoint:
        result, rows = run(endpoint.url)
    titles = sorted(endpoint.titles)
    assert titles == ["Alma Coat", "Alma Shirt", "Alma Shirt", "Noa 코트", "Vera Dress", "Vera Dress"]
    assert (result["live_calls"], result["failed_calls"], result["over_budget"]) == (5, 1, 0)
    assert (rows["A1"]["status"], rows["A3"]["status"]) == ("refused", "quarantined")
    assert "HTTP Error 400" in rows["A1"]["reason"]
    assert [a["value"] for a in rows["A2"]["re"] if a["source"] == "llm"] == ["Dress"]
    assert rows["A4"]["status"] == rows["A5"]["status"] == rows["A6"]["status"] == "invalid"
    calls = ledger(fresh)
    assert result["live_tokens_in"] == sum(tokens for tokens, _ in calls)
    assert [tokens for tokens, _ in calls].count(rows["A2"]["tokens_in"] // 2) == 2, "an answer has both calls' tokens"

    with serve(sensible) as endpoint:
        result, rows = run(endpoint.url)
    assert endpoint.titles == ["Alma Coat"], "what was answered is not asked again"
    assert (result["live_calls"], result["cached"]) == (1, 4)
    assert rows["A1"]["status"] in ("ok", "partial")


@pytest.mark.slow
def test_budgets_of_calls_and_money_hold(run: Callable[..., Any], fresh: str, ray_local: None) -> None:
    """The money is enough for one prompt at its dearest, and one answer spends too much for another."""
    prompts = [len(asked_of(row)["question"].encode()) for row in COATS]
    dearest = (2 * max(prompts) + 600 + REPAIR_BYTES + 2 * 600) / 1_000
    priced = ["enrich.price_in=1000", "enrich.price_out=1000", f"enrich.max_cost={dearest}"]
    with serve(sensible) as endpoint:
        result, rows = run(endpoint.url, *priced, "enrich.max_calls=3")
    assert len(endpoint.titles) == result["live_calls"] == 1
    assert result["over_budget"] == 3, "one beyond max_calls, two without money"
    assert result["cost"] <= dearest
    assert sum(row["model"] is not None for row in rows.values()) in (1, 2), "A4 and A5 have the same text"


@pytest.mark.slow
def test_a_model_that_does_not_load_is_named(run: Callable[..., Any], ray_local: None) -> None:
    with pytest.raises(EngineError, match=r"/model' \(OSError: it is not a local folder.*check the model's name"):
        run("")


@pytest.fixture
def llama() -> Iterator[str]:
    """llama.cpp's own server with the embedded model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(llamacpp.model_path("gemma3-270m"))
    params.n_ctx = 4096
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = ["k"]
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server  # it lives as long as its object


@pytest.mark.slow
def test_a_real_model_answers_in_the_form_of_the_schema(run: Callable[..., Any], llama: str, ray_local: None) -> None:
    """One field is left for the model to conclude: each costs this one seconds."""
    given = [*COATS[0]["attributes"], ("occasion", ["party"]), ("vibe", ["elegant"])]
    coats = [{**COATS[0], "attributes": given}, *COATS[1:]]
    result, rows = run(llama, "enrich.max_calls=1", "enrich.max_output_tokens=120", rows=coats, key="k")
    assert (result["live_calls"], result["failed_calls"]) == (1, 0)
    assert result["live_tokens_in"] > 300
    assert rows["A1"]["status"] in ("ok", "partial"), rows["A1"]["reason"]
    assert rows["A1"]["prompt_version"] == "chat-1"
