"""vLLM on the cluster's GPUs, through `ray.data.llm`: a processor, which turns a data set of questions into answers.

Ray Data streams the rows through it: chat template and tokens on CPUs, then engines that keep a bounded number of
batches in flight each. The JSON schema of a row's answer goes to the engine as text: as a value of its own it would be
an Arrow struct, in which the schemas of all rows are one, with nulls for what one lacks.
"""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from rec.config import Enrich, Vllm
from rec.enrich.completion import Completion
from rec.enrich.openai import again, misfit
from rec.errors import EngineError

ERROR = "__inference_error__"
"""Ray's column of why a row has no answer; empty for those that have one."""

QUESTION = pa.schema(
    [
        ("key", pa.string()),
        ("content_hash", pa.string()),
        ("question", pa.string()),
        ("schema", pa.string()),
        ("prompt_bytes", pa.int64()),
        ("share", pa.float64()),
        ("most", pa.float64()),
        ("first", pa.string()),
        ("problem", pa.string()),
        ("first_tokens_in", pa.int64()),
        ("first_tokens_out", pa.int64()),
    ]
)
"""A row that goes in, and comes out again with its answer. `first` is an answer to repair, `problem` what is wrong with
it; `most` the money put aside. No name may be one that Ray's stages write to, such as `prompt`."""

STEP_CPUS = 0.25
"""Of each step around the engine, ours too: all of them run at once. With Ray's whole CPU each they do not fit a small
GPU node, and what has started waits for ever for what has not."""
NEEDED_CPUS = 2
"""Of all steps together, beside one for each GPU."""

Processor = Callable[[ray.data.Dataset], ray.data.Dataset]


def require(options: Vllm) -> None:
    """Raise EngineError unless vLLM is installed and the cluster, to which this process is connected, can run it."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "the package vllm is not installed: `pip install '.[vllm]'` here and on the GPU nodes, or serve the model "
            'elsewhere and set enrich.engine="openai"'
        )
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    if gpus < options.gpus:
        raise EngineError(
            f"vLLM needs {options.gpus} GPUs (enrich.vllm.tensor_parallel_size={options.tensor_parallel_size} times "
            f"pipeline_parallel_size={options.pipeline_parallel_size}), the Ray cluster has {gpus}: start GPU nodes, "
            "with autoscaling at least those of one engine, or set RAY_ADDRESS to a cluster that has them"
        )
    cpus = int(there.get("CPU", 0))
    if cpus < options.gpus + NEEDED_CPUS:
        raise EngineError(
            f"vLLM on {options.gpus} GPUs needs {options.gpus + NEEDED_CPUS} CPUs, the Ray cluster has {cpus}: start "
            "larger nodes, or raise cpus where Ray runs on this machine"
        )
    kind = options.accelerator_type
    if kind and f"accelerator_type:{kind}" not in there:
        known = sorted(name.partition(":")[2] for name in there if name.startswith("accelerator_type:"))
        raise EngineError(
            f"enrich.vllm.accelerator_type={kind!r}: the Ray cluster has {', '.join(known) or 'no accelerator type'}; "
            "name one of these, or leave it empty"
        )


def processor(enrich: Enrich) -> Processor:
    """What answers a data set of QUESTION; its rows come out as `answered` makes them, failed ones with ERROR."""
    from ray.data import llm  # takes a second, and no other engine needs it

    options = enrich.vllm
    arguments: dict[str, Any] = {
        **options.engine_kwargs,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
    }
    if options.quantization:
        arguments["quantization"] = options.quantization
    step = {"num_cpus": STEP_CPUS}
    config = llm.vLLMEngineProcessorConfig(
        model_source=enrich.model,
        engine_kwargs=arguments,
        accelerator_type=options.accelerator_type or None,
        concurrency=enrich.num_actors,
        batch_size=options.batch_size,
        should_continue_on_error=True,  # a prompt that is too long is its row's failure and nobody else's
        log_engine_metrics=False,  # they need a metrics port, which `rec.runtime` does not open
        chat_template_stage={"chat_template_kwargs": options.chat_template_kwargs or None, **step},
        tokenize_stage=step,
        detokenize_stage=step,
    )
    return llm.build_processor(
        config,
        preprocess=partial(request, enrich=enrich),
        postprocess=answered,
        preprocess_map_kwargs=step,
        postprocess_map_kwargs=step,
    )


def request(row: dict[str, Any], enrich: Enrich) -> dict[str, Any]:
    """What the engine is told of a row of QUESTION: a conversation, and how to sample its next message."""
    messages = [{"role": "user", "content": row["question"]}]
    if row["first"] is not None:
        messages += again(row["first"], row["problem"])
    sampling = {
        **enrich.request,
        "max_tokens": enrich.max_output_tokens,
        "structured_outputs": {"json": row["schema"]},
    }
    return {"messages": messages, "sampling_params": sampling}


def answered(row: dict[str, Any]) -> dict[str, Any]:
    """A row of QUESTION with the engine's answer, out of all that the stages wrote to it."""
    return {
        **{name: row[name] for name in QUESTION.names},
        "text": row["generated_text"],
        "tokens_in": row["num_input_tokens"],
        "tokens_out": row["num_generated_tokens"],
        "seconds": row["time_taken_llm"],
    }


def completion(row: dict[str, Any], max_tokens: int) -> tuple[Completion, str | None]:
    """The answer in an `answered` row, and what is wrong with it if it is finished.

    Ray's stage keeps no reason why an answer ended: one that is as long as it may be is cut, unless it fits.
    """
    problem = misfit(row["text"], json.loads(row["schema"]))
    finished = row["tokens_out"] < max_tokens or problem is None
    return Completion(row["text"], finished, row["tokens_in"], row["tokens_out"]), problem if finished else None
