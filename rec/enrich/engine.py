"""The engine that answers prompts, by its name in `enrich.engine`.

`vllm` is no `Engine`: it answers data sets (`rec.enrich.stream`); actors ask the others (`rec.enrich.workers`).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from rec.config import Enrich
from rec.enrich import llamacpp, openai, vllm
from rec.enrich.cache import Habit
from rec.enrich.chat import CHAT, CHAT_IMAGES
from rec.enrich.completion import Completion
from rec.enrich.llamacpp import LlamaCpp
from rec.enrich.openai import OpenAI
from rec.enrich.pace import Pace
from rec.enrich.prompt import COMPLETION, Form
from rec.errors import EngineError


class Engine(Protocol):
    """What an engine can do."""

    def complete(
        self, prompt: str, schema: dict[str, Any], max_tokens: int, images: Sequence[bytes] = ()
    ) -> Completion:
        """A continuation of `prompt` that fits the JSON schema, at most `max_tokens` long.

        `images`: JPEGs that go with it, none for an engine whose form knows none.
        May be called by as many threads as `concurrency` says. Raises EngineError when this prompt has no answer,
        EndpointError when no other will have one either.
        """


def require(enrich: Enrich) -> None:
    """Raise EngineError unless the engine, what it needs of the model and its key are there."""
    match enrich.engine:
        case "llamacpp":
            llamacpp.require(enrich.model)
        case "openai":
            openai.require(enrich.base_url)
            lacking = [name for name in ("httpcore", "PIL") if enrich.images.max_images and not find_spec(name)]
            if lacking:
                raise EngineError(
                    f"enrich.images needs the package {lacking[0]}, which is not installed: "
                    "`pip install 'shop-rec[openai]'`, or set enrich.images.max_images=0"
                )
        case "vllm":
            vllm.require(enrich.vllm)


def key(enrich: Enrich) -> str:
    """The secret that the engine needs, as the job's environment has it; empty for none."""
    match enrich.engine:
        case "llamacpp" | "vllm":
            return ""
        case "openai":
            return openai.key()


def load(enrich: Enrich, pace: Pace | None = None, key: str = "") -> Engine:
    """The engine with its model loaded; `pace` is that of all workers of the run, `key` what `key` gave the job."""
    match enrich.engine:
        case "llamacpp":
            return LlamaCpp(enrich.model, enrich.threads)
        case "openai":
            return OpenAI(enrich, pace, key)
        case "vllm":
            raise EngineError(
                'enrich.engine="vllm" answers whole data sets and no single prompts: serve the model with `vllm serve` '
                'and set enrich.engine="openai"'
            )


def form(enrich: Enrich) -> Form:
    """How the engine's models are asked."""
    match enrich.engine:
        case "llamacpp":
            return COMPLETION
        case "openai":
            return CHAT_IMAGES if enrich.images.max_images else CHAT
        case "vllm":
            return CHAT


def prior(enrich: Enrich) -> Habit:
    """What the model is taken to do before it was asked once."""
    match enrich.engine:
        case "llamacpp":  # 374 products of the sample catalogue: .3075 and 46.4; H&M articles: .305 and 48
            return Habit(0, 0.306, 47.0)
        case "openai" | "vllm":  # of many models: four bytes a token, a short answer
            return Habit(0, 0.25, 60.0)


def concurrency(enrich: Enrich) -> int:
    """Prompts that one worker has in flight."""
    match enrich.engine:
        case "llamacpp":
            return 1  # its threads share one prompt
        case "openai":
            return enrich.concurrency
        case "vllm":
            return enrich.vllm.batch_size


def cpus(enrich: Enrich) -> float:
    """CPUs that one worker keeps busy."""
    match enrich.engine:
        case "llamacpp":
            return enrich.threads
        case "openai":
            return 0.5  # it waits for the network
        case "vllm":
            return 1.0  # it waits for the GPU
