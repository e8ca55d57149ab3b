"""Asking by data set, for the engine `vllm`: what `rec.enrich.workers.Ask` does by prompt, with the same pieces.

    open      products without an answer become questions; the money for each is put aside
    answer    a processor, Dataset → Dataset (`rec.enrich.vllm`)
    commit    every answer goes to the cache and the ledger as it comes; one that does not fit its schema is kept, too,
              and asked again once, in a second pass over these alone

The rows stream, so memory is bounded by what Ray Data lets be in flight. One run at a time asks a model: an answer's
lock belongs to a connection, which cannot follow it from the worker that opens to the one that commits.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from rec import postgres
from rec.config import Enrich
from rec.enrich import cache, vllm
from rec.enrich.pace import Pace
from rec.enrich.text import shown
from rec.enrich.vllm import ERROR, QUESTION, STEP_CPUS
from rec.enrich.workers import ASKED, Asking, Opened
from rec.errors import EngineError

log = logging.getLogger(__name__)

COMMITTED = pa.schema([*ASKED, *(field for field in QUESTION if field.name != "key")])
"""A row of ASKED; where the answer is to be repaired, with the question to ask then."""


def ask(
    waiting: ray.data.Dataset, enrich: Enrich, database_url: str, run_id: str, pace: Pace | None
) -> Iterator[pa.Table]:
    """Ask about the products of `waiting`. Yields rows of ASKED as answers are committed, those without money last.

    Products that were answered meanwhile have no row.
    """
    arguments = (enrich, database_url, run_id, pace)
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=enrich.num_actors)

    def through(data: ray.data.Dataset, worker: type["Open"] | type["Commit"]) -> ray.data.Dataset:
        return data.map_batches(
            worker,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=STEP_CPUS,
            compute=actors,
            fn_constructor_args=arguments,
        )

    before = pace.refused() if pace else 0
    with postgres.session(database_url, autocommit=True) as connection, cache.alone(connection, f"vllm/{enrich.model}"):
        answer = vllm.processor(enrich)
        repairs: list[Any] = []
        for committed in _tables(through(answer(through(waiting, Open)), Commit), enrich):
            misfits = committed.filter(committed["first"].is_valid())
            if misfits.num_rows:
                repairs.append(ray.put(misfits.select(QUESTION.names)))  # Ray's store can spill them, a list cannot
            yield committed.select(ASKED.names)
        if repairs:
            log.info("answers that do not fit their schema are asked again, once")
            again = ray.data.from_arrow_refs(repairs)
            again.context.enable_progress_bars = False
            for _ in _tables(through(answer(again), Commit), enrich):
                pass  # a repair that fails leaves the first answer, which is committed
    unpaid = pace.refused() - before if pace else 0
    yield pa.Table.from_pylist([{"unpaid": True}] * unpaid, schema=ASKED)


def _tables(data: ray.data.Dataset, enrich: Enrich) -> Iterator[pa.Table]:
    """The blocks of `data` as they come."""
    try:
        for batch in data.iter_batches(batch_format="pyarrow", batch_size=None):
            assert isinstance(batch, pa.Table)
            yield batch
    except ray.exceptions.RayActorError as error:  # most often an engine that did not start
        line = str(error).strip().splitlines()[-1][:300]
        raise EngineError(
            f"an actor ended that asks enrich.model={enrich.model!r} ({line}): what was answered is kept; check the "
            "model's name and access to it, and whether it fits the GPU (enrich.vllm)"
        ) from error


class _Worker:
    """An actor with a connection."""

    def __init__(self, enrich: Enrich, database_url: str, run_id: str, pace: Pace | None) -> None:
        self._enrich = enrich
        self._asking = Asking(enrich, database_url, run_id, pace)
        self._connection = postgres.connect(database_url, autocommit=True)


class Open(_Worker):
    """Makes questions of products. What needs no answer, and what there is no money for, goes no further."""

    @postgres.refusals()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of QUESTION."""
        opened = (self._open(row) for row in batch.to_pylist())
        return pa.Table.from_pylist([row for row in opened if row is not None], schema=QUESTION)

    def _open(self, row: dict[str, Any]) -> dict[str, Any] | None:
        text = shown(row, self._enrich)
        # Waiting for money would be for answers that may wait for this batch: what is given back pays for later rows.
        opened = self._asking.open(self._connection, row, text, wait=False)
        if not isinstance(opened, Opened):
            return None
        return {
            "key": opened.key,
            "content_hash": opened.subject,
            "question": opened.question.prompt,
            "schema": json.dumps(opened.question.schema, ensure_ascii=False),
            "prompt_bytes": opened.question.prompt_bytes,
            "share": opened.question.share,
            "most": opened.most,
        }


class Commit(_Worker):
    """Puts answers into the cache and calls into the ledger."""

    @postgres.refusals()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of COMMITTED."""
        return pa.Table.from_pylist([self._commit(row) for row in batch.to_pylist()], schema=COMMITTED)

    def _commit(self, row: dict[str, Any]) -> dict[str, Any]:
        if row.get(ERROR):  # its money stays aside: a batch may come twice, and must not give back twice
            return {"key": row["key"], "failure": row[ERROR][:300]}
        raw, problem = vllm.completion(row, self._enrich.max_output_tokens)
        call = cache.Call(raw.tokens_in, raw.tokens_out, row["seconds"], row["prompt_bytes"], round(row["share"], 4))
        if row["first"] is not None:
            both = (row["first_tokens_in"] + raw.tokens_in, row["first_tokens_out"] + raw.tokens_out)
            raw, problem = replace(raw, tokens_in=both[0], tokens_out=both[1]), None
        kept = self._asking.kept(self._connection, row["content_hash"])
        new = self._asking.commit(self._connection, row["key"], kept, raw, call, once=True)
        if problem is not None:
            question = {name: row[name] for name in QUESTION.names}
            tokens = {"first_tokens_in": raw.tokens_in, "first_tokens_out": raw.tokens_out}
            return {**question, "first": raw.text, "problem": problem, **tokens}
        if new:
            self._asking.settle(row["most"], raw)
        return {"key": row["key"]}
