"""The last pass of enrichment: the row of every product, out of what the shop gave, rules, an answer and a correction.

Plain functions and a class over Arrow batches, callable without Ray.
"""

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rec import postgres
from rec.config import Enrich
from rec.enrich import answers, backfill, cache, engine
from rec.enrich.answers import Answer, Outcome
from rec.enrich.attributes import Attribute, Report, from_rules, from_shop
from rec.enrich.corrections import Correction
from rec.enrich.text import Canonical, given, shown
from rec.enrich.workers import BATCH_ROWS, Origin, unfilled
from rec.schema import ENRICHED
from rec.vocab.std import StdVocabulary

NOT_ASKED = Outcome("partial", "no model was asked", [], [])
NO_TEXT = Outcome("partial", "the product has no text", [], [])


class Finish:
    """Builds the rows of `enriched` from the product, the rules, the cached answer and the correction, if any."""

    def __init__(
        self,
        enrich: Enrich,
        connection: cache.Connection,
        origins: list[Origin],
        failures: dict[str, str],
        corrections: Mapping[str, Correction],
        unasked: Set[str],
    ) -> None:
        """`failures`: key of an answer → why the call for it failed in this run. `corrections`: by product id.

        `unasked`: ids of the products whose text is hostile, or that have none, as the scan found.
        """
        self._unasked = unasked
        self._enrich = enrich
        self._corrections = corrections
        self._failures = failures
        self._origins = origins
        self._vocabulary = StdVocabulary.load(None)
        self._connection = connection
        self._backfill = backfill.load(connection, enrich.model, engine.form(enrich), self._vocabulary)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of ENRICHED, with the batch's Report as JSON in the first row of an extra column `report`."""
        version = self._backfill.now.vocab_version
        rows = batch.to_pylist()
        texts = [shown(row, self._enrich, tame=row["product_id"] not in self._unasked) for row in rows]
        keys = [
            [cache.answer_key(text.subject, o.model, o.prompt_version, version) for o in self._origins]
            for text in texts
        ]
        every = [key for some in keys for key in some]
        found = cache.fetch(self._connection, every, self._enrich.max_output_tokens)
        waiting = [text.subject for text, wanted in zip(texts, keys, strict=True) if found.keys().isdisjoint(wanted)]
        older = self._backfill.find(self._connection, waiting, self._enrich.max_output_tokens)
        report = Report()
        made = []
        for row, text, wanted in zip(rows, texts, keys, strict=True):
            kept = older.get(text.subject)
            answer = next((found[key] for key in wanted if key in found), kept.answer if kept else None)
            failure = next((self._failures[key] for key in wanted if key in self._failures), None)
            missing = kept.missing if kept else ()
            machine = enriched_row(row, text, answer, failure, self._vocabulary, report, missing)
            human = self._corrections.get(row["product_id"])
            made.append(machine if human is None else human.apply(machine, text))
        table = pa.Table.from_pylist(made, schema=ENRICHED.schema)
        notes = [report.to_json(), *[None] * (len(made) - 1)]
        return table.append_column("report", pa.array(notes, pa.string()))


def finish(
    products: pa.Table,
    enrich: Enrich,
    database_url: str,
    origins: list[Origin],
    failures: dict[str, str],
    corrections: Mapping[str, Correction],
    unasked: Set[str],
) -> Iterator[pa.Table]:
    """What Finish makes of a row group, BATCH_ROWS at a time.

    A task and no actor: it starts in a process that is warm from the scan.
    """
    with postgres.session(database_url, autocommit=True) as connection:
        finished = Finish(enrich, connection, origins, failures, corrections, unasked)
        for start in range(0, products.num_rows, BATCH_ROWS):
            yield finished(products.slice(start, BATCH_ROWS))


def enriched_row(
    row: dict[str, Any],
    text: Canonical,
    answer: Answer | None,
    failure: str | None,
    vocabulary: StdVocabulary,
    report: Report,
    missing: Collection[str] = (),
) -> dict[str, Any]:
    """One row of ENRICHED. A hostile text keeps what the shop gave and nothing that was read out of it.

    `missing`: the parts of the question that `answer`, an older one, does not answer.
    """
    shop_std, shop_re = from_shop(given(row), vocabulary, report)
    rule_std: list[Attribute] = []
    rule_re: list[Attribute] = []
    if text.hostile is not None:
        answer, outcome = None, Outcome("quarantined", f"the text addresses the model: {text.hostile!r}", [], [])
    else:
        report.images_refused.update(text.images.refused)
        rule_std, rule_re = from_rules(text, vocabulary)
        unasked = NOT_ASKED if text.text else NO_TEXT
        outcome = unasked if answer is None else answers.read(answer, text, vocabulary, report)
        left = unfilled(missing, {a.key for a in (*shop_std, *rule_std)}, bool(text.images.urls))
        if failure is not None:  # an older answer, or the tagger's labels, stand in until the next run
            why = f"{', '.join(left)} of an older answer: {failure}" if left else failure
            outcome = replace(outcome, status="refused", reason=why[:300])
        elif left:
            outcome = replace(
                outcome, status="partial", reason=f"{', '.join(left)} of an older answer: not asked"[:300]
            )
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
