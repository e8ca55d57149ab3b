"""What runs on Ray Data's workers: plain functions and classes over Arrow batches, callable without Ray."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rec import postgres
from rec.config import Enrich
from rec.enrich import answers, cache, engine
from rec.enrich.answers import Answer, Outcome
from rec.enrich.attributes import Attribute, Report, from_rules, from_shop
from rec.enrich.prompt import PROMPT_VERSION, body, open_keys, prompt, schema
from rec.enrich.text import Canonical, canonical, given
from rec.errors import EngineError
from rec.schema import ENRICHED
from rec.vocab.std import StdVocabulary

COLUMNS = ["product_id", "title", "description", "html", "attributes"]
"""Columns of `products` that enrichment reads."""

ASKED = pa.schema([("key", pa.string()), ("failure", pa.string())])

BATCH_ROWS = 512
"""Products that are cut, hashed or finished at once."""

NOT_ASKED = Outcome("partial", "no model was asked", [], [])


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answered which prompt."""

    model: str
    prompt_version: str


def read(groups: pa.Table, path: str) -> pa.Table:
    """COLUMNS of the row groups of the parquet file `path` whose numbers are in column `id`."""
    return pq.ParquetFile(path).read_row_groups(groups["id"].to_pylist(), columns=COLUMNS)


def scan(batch: pa.Table, max_chars: int) -> pa.Table:
    """product_id, content_hash and whether the text is hostile."""
    texts = [canonical(row, max_chars) for row in batch.to_pylist()]
    return pa.table(
        {
            "product_id": batch["product_id"],
            "content_hash": [text.content_hash for text in texts],
            "hostile": [text.hostile is not None for text in texts],
        }
    )


class Ask:
    """An actor with the engine: asks about each product that has no answer yet and commits the answer.

    A call that fails is no answer: it goes on as a row of its key and the reason, and the next run asks again.
    """

    def __init__(self, enrich: Enrich, database_url: str, run_id: str) -> None:
        self._enrich = enrich
        self._run_id = run_id
        self._vocabulary = StdVocabulary.load(None)
        self._connection = postgres.connect(database_url, autocommit=True)
        self._engine = engine.load(enrich)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`key` and `failure` of each product; null where there is an answer now."""
        return pa.Table.from_pylist([self._ask(row) for row in batch.to_pylist()], schema=ASKED)

    def _ask(self, row: dict[str, Any]) -> dict[str, str | None]:
        text = canonical(row, self._enrich.max_text_chars)
        key = cache.answer_key(text.content_hash, self._enrich.model, PROMPT_VERSION, self._vocabulary.version)
        # The worker of a killed run outlives its driver by seconds and may be asking the same.
        with cache.alone(self._connection, key):
            if not cache.known(self._connection, [key], self._enrich.max_output_tokens):
                started = time.monotonic()
                try:
                    answer = self._answer(row, text)
                except EngineError as error:
                    return {"key": key, "failure": str(error)[:200]}
                cache.pay(self._connection, self._run_id, key, answer, time.monotonic() - started)
        return {"key": key, "failure": None}

    def _answer(self, row: dict[str, Any], text: Canonical) -> Answer:
        shop, _ = from_shop(given(row), self._vocabulary, Report())
        rules, _ = from_rules(text, self._vocabulary)
        std_keys = open_keys(self._vocabulary, {a.key for a in (*shop, *rules)})
        form = schema(text, self._vocabulary, std_keys, {a.evidence.casefold() for a in rules if a.evidence})
        raw = self._engine.complete(prompt(text, std_keys), form, self._enrich.max_output_tokens)
        state = "finished" if raw.finished else "cut"
        return Answer(self._enrich.model, PROMPT_VERSION, state, body(raw.text), raw.tokens_in, raw.tokens_out)


class Finish:
    """Builds the rows of `enriched` from the product, the rules and the cached answer, if any."""

    def __init__(
        self, enrich: Enrich, connection: cache.Connection, origins: list[Origin], failures: dict[str, str]
    ) -> None:
        """`failures`: key of an answer → why the call for it failed in this run."""
        self._enrich = enrich
        self._failures = failures
        self._origins = origins
        self._vocabulary = StdVocabulary.load(None)
        self._connection = connection

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of ENRICHED, with the batch's Report as JSON in the first row of an extra column `report`."""
        version = self._vocabulary.version
        rows = batch.to_pylist()
        texts = [canonical(row, self._enrich.max_text_chars) for row in rows]
        keys = [
            [cache.answer_key(text.content_hash, o.model, o.prompt_version, version) for o in self._origins]
            for text in texts
        ]
        every = [key for some in keys for key in some]
        found = cache.fetch(self._connection, every, self._enrich.max_output_tokens)
        report = Report()
        made = []
        for row, text, wanted in zip(rows, texts, keys, strict=True):
            answer = next((found[key] for key in wanted if key in found), None)
            failure = next((self._failures[key] for key in wanted if key in self._failures), None)
            made.append(enriched_row(row, text, answer, failure, self._vocabulary, report))
        table = pa.Table.from_pylist(made, schema=ENRICHED.schema)
        notes = [report.to_json(), *[None] * (len(made) - 1)]
        return table.append_column("report", pa.array(notes, pa.string()))


def finish(
    products: pa.Table, enrich: Enrich, database_url: str, origins: list[Origin], failures: dict[str, str]
) -> Iterator[pa.Table]:
    """What Finish makes of a row group, BATCH_ROWS at a time.

    A task and no actor: it starts in a process that is warm from the scan.
    """
    with postgres.connect(database_url, autocommit=True) as connection:
        finished = Finish(enrich, connection, origins, failures)
        for start in range(0, products.num_rows, BATCH_ROWS):
            yield finished(products.slice(start, BATCH_ROWS))


def enriched_row(
    row: dict[str, Any],
    text: Canonical,
    answer: Answer | None,
    failure: str | None,
    vocabulary: StdVocabulary,
    report: Report,
) -> dict[str, Any]:
    """One row of ENRICHED. A hostile text keeps what the shop gave and nothing that was read out of it."""
    shop_std, shop_re = from_shop(given(row), vocabulary, report)
    rule_std: list[Attribute] = []
    rule_re: list[Attribute] = []
    if text.hostile is not None:
        answer, outcome = None, Outcome("quarantined", f"the text addresses the model: {text.hostile!r}", [], [])
    else:
        rule_std, rule_re = from_rules(text, vocabulary)
        unanswered = NOT_ASKED if failure is None else Outcome("refused", failure, [], [])
        outcome = unanswered if answer is None else answers.read(answer, text, vocabulary, report)
    return {
        "product_id": row["product_id"],
        "std": answers.rows(answers.merge_std(shop_std, rule_std, outcome.std)),
        "re": answers.rows(answers.merge_re(shop_re, rule_re, outcome.re)),
        "status": outcome.status,
        "reason": outcome.reason,
        "model": answer.model if answer else None,
        "prompt_version": answer.prompt_version if answer else None,
        "vocab_version": vocabulary.version,
        "tokens_in": answer.tokens_in if answer else 0,
        "tokens_out": answer.tokens_out if answer else 0,
        "content_hash": text.content_hash,
    }
