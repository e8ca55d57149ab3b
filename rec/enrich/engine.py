"""The engine that answers prompts, by its name in `enrich.engine`."""

from typing import Any, Protocol

from rec.config import Enrich
from rec.enrich import llamacpp
from rec.enrich.llamacpp import Completion, LlamaCpp


class Engine(Protocol):
    """What an engine can do."""

    def complete(self, prompt: str, schema: dict[str, Any], max_tokens: int) -> Completion:
        """A continuation of `prompt` that fits the JSON schema, at most `max_tokens` long. May raise EngineError."""


def require(enrich: Enrich) -> None:
    """Raise EngineError unless the engine and what it needs of the model are installed."""
    match enrich.engine:
        case "llamacpp":
            llamacpp.require(enrich.model)


def load(enrich: Enrich) -> Engine:
    """The engine with its model loaded."""
    match enrich.engine:
        case "llamacpp":
            return LlamaCpp(enrich.model, enrich.threads)
