"""In the place of vLLM's own stage inside Ray's processor: one that asks a chat-completions endpoint.

All around it is what runs on a GPU cluster: Ray's processor with our request and answer, its data column, its batches
and its rows of failed prompts. It reads a row as `vLLMEngineStage` of Ray 2.60 does and writes the columns that it
writes, failures included.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

import ray.data
from ray.llm._internal.batch.stages.base import StatefulStage, StatefulStageUDF

from rec.config import Enrich
from rec.enrich import vllm


class Asks(StatefulStageUDF):
    """The actor."""

    def __init__(self, data_column: str, expected_input_keys: list[str], url: str, key: str) -> None:
        super().__init__(data_column, expected_input_keys)
        if not url:
            raise OSError("it is not a local folder and is not a valid model identifier")
        self._url, self._key = url, key

    async def udf(self, rows: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """All rows of a batch at once."""
        for answer in asyncio.as_completed([asyncio.to_thread(self._ask, row) for row in rows]):
            yield await answer

    def _ask(self, row: dict[str, Any]) -> dict[str, Any]:
        sampling = row.pop("sampling_params")
        schema = json.loads(sampling.pop("structured_outputs")["json"])
        asked = {
            "messages": [dict(message) for message in row["messages"]],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            **{name: getattr(value, "item", lambda value=value: value)() for name, value in sampling.items()},
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(f"{self._url}/chat/completions", json.dumps(asked).encode(), headers)
        started = time.monotonic()
        made: dict[str, Any]
        try:
            with urllib.request.urlopen(request) as response:
                whole = json.loads(response.read())
        except urllib.error.HTTPError as error:
            text, tokens, failure = "", (0, 0), f"HTTPError: {error}"
        else:
            text, failure = whole["choices"][0]["message"]["content"], ""
            tokens = (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"])
        made = {"generated_text": text, "num_input_tokens": tokens[0], "num_generated_tokens": tokens[1]}
        seconds = -1 if failure else time.monotonic() - started
        index = {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN]}
        return {**index, **made, "prompt": "", "time_taken_llm": seconds, vllm.ERROR: failure}


def by(url: str, key: str = "") -> Callable[[Enrich], vllm.Processor]:
    """What takes the place of `vllm.processor`: what that makes, with the endpoint at `url` for its GPU.

    An empty `url` is a model that does not load.
    """
    build = vllm.processor

    def processor(enrich: Enrich) -> vllm.Processor:
        made: Any = build(enrich)
        made.stages = OrderedDict(
            asks=StatefulStage(
                fn=Asks,
                fn_constructor_kwargs={"url": url, "key": key},
                map_batches_kwargs={"compute": ray.data.ActorPoolStrategy(size=1), "zero_copy_batch": True},
            )
        )
        return made

    return processor
