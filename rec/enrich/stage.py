"""The enrichment stage: products → enriched, in passes over Ray Data.

    scan     canonical text of every product, and what its answer is found by
    import   answers produced elsewhere go into the cache (`rec.enrich.imports`)
    ask      products without an answer, through actors that hold the engine; each answer is committed at once
    label    with `enrich.tagger`: the tagger learns from the answers to a sample and labels the other products
             (`rec.enrich.tag`); those it is unsure of are asked
    finish   given, rule, model and corrected values of every product, in product order

The engine loads only when there is something to ask. `max_calls` is spent on products in product order and counts
those that an earlier run of the same work already asked: a killed and restarted stage asks the same products
as an undisturbed one, and none of them twice.
"""

import hashlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from rec import artifact, dataset, postgres, runtime
from rec import log as progress
from rec.config import Config, Enrich
from rec.enrich import backfill, cache, catalogue, corrections, engine, imports, stream
from rec.enrich.answers import LABELS, Answer
from rec.enrich.attributes import Report
from rec.enrich.backfill import Backfill
from rec.enrich.corrections import Corrections
from rec.enrich.finish import finish
from rec.enrich.pace import Pace
from rec.enrich.plan import Plan, choose
from rec.enrich.workers import BATCH_ROWS, Ask, Origin, cost, weigh
from rec.schema import ENRICHED, PRODUCTS
from rec.vocab import std
from rec.vocab.std import StdVocabulary

log = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any]:
    """Run the stage unless it is done. Returns counts, tokens and seconds as JSON values."""
    started = time.monotonic()
    products = dataset.read_manifest(config.at("products"), PRODUCTS)
    vocabulary = StdVocabulary.load(None)
    files = [imports.locate(name, config.source.folder) for name in config.enrich.answers]
    inputs = {"products": products.content_hash}
    inputs |= {f"answers/{i}": artifact.hash_file(path) for i, path in enumerate(files)}
    human, corrections_hash = corrections.load(config.enrich.corrections, config.source.folder, vocabulary)
    if corrections_hash is not None:
        inputs["corrections"] = corrections_hash
    branch: dict[str, Any] = {
        "enrich": config.enrich.identity(),
        "prompt_version": engine.form(config.enrich).version,
        "vocabulary": hashlib.sha256(std.shipped().encode()).hexdigest(),
    }
    target = config.at("enriched")
    if config.enrich.tagger.enabled:
        from rec.models import text_encoder  # loads torch

        branch |= {"encoder": config.text.encoder, "labels": LABELS}
        branch |= text_encoder.files(config.text, artifact.peek(target))
    done = artifact.finished(target, kind=ENRICHED.kind, version=ENRICHED.version, inputs=inputs, config=branch)
    # Calls that failed are made again, and images that could not be had are tried again.
    if done is not None and "refused" not in done.facts["status"] and not _waiting(done.facts):
        return {"enriched": str(target), "skipped": True, **_short(done.facts)}
    config = catalogue.placed(config)
    runtime.start(config.cpus)
    database_url = postgres.url(config.store)
    run_id = uuid.uuid4().hex
    with postgres.session(database_url, autocommit=True) as connection:
        older = backfill.prepare(connection, config.enrich.model, engine.form(config.enrich), vocabulary)
        plan = _plan(config, files, older, connection)
        pace = _pace(config.enrich, cache.spent(connection, plan.keys))
        failures, unpaid = _ask(config, plan, database_url, run_id, pace)
        if config.enrich.tagger.enabled and plan.rest:
            plan = _label(config, plan, connection, database_url)
            more, more_unpaid = _ask(config, plan, database_url, run_id, pace)
            failures, unpaid = failures | more, unpaid + more_unpaid
        spent = cache.usage(connection, run_id)
    report, statuses, tokens = Report(), Counter[str](), Counter[str]()
    facts: dict[str, Any] = {}
    rejects = dataset.Rejects()
    task = partial(
        finish,
        enrich=config.enrich,
        database_url=database_url,
        origins=plan.origins,
        failures=failures,
        corrections=human.by_product,
        unasked=plan.unasked,
    )
    batches = _finished_batches(config, task, report, statuses, tokens, products.facts["rows"])
    rows = _then(human.follow(batches, rejects), facts, report, statuses, tokens, human)
    manifest = dataset.write(target, ENRICHED, rows, inputs=inputs, config=branch, rejects=rejects, facts=facts)
    for reason, count in report.images_refused.items():
        log.warning("%d images were not shown to the model: %s", count, reason)
    result = {
        "enriched": str(target),
        **_short(manifest.facts),
        "cached": plan.cached,
        "live_calls": spent.calls,
        "failed_calls": len(failures),
        "live_tokens_in": spent.tokens_in,
        "live_tokens_out": spent.tokens_out,
        "cost": round(cost(config.enrich, spent.tokens_in, spent.tokens_out), 6),
        "over_budget": plan.over_budget + unpaid,
        "seconds": round(time.monotonic() - started, 1),
    }
    log.info("enriched %s", ", ".join(f"{name} {value}" for name, value in result.items() if name != "enriched"))
    return result


def estimate(config: Config) -> dict[str, Any]:
    """What `run` would ask and pay, without asking: tokens from this model's latest calls, else from engine.prior.

    Answers to import are put into the cache, as `run` would; nothing else is written.
    """
    vocabulary = StdVocabulary.load(None)
    files = [imports.locate(name, config.source.folder) for name in config.enrich.answers]
    products = dataset.read_manifest(config.at("products"), PRODUCTS).facts["rows"]
    config = catalogue.placed(config)
    runtime.start(config.cpus)
    database_url = postgres.url(config.store)
    with postgres.session(database_url, autocommit=True) as connection:
        older = backfill.prepare(connection, config.enrich.model, engine.form(config.enrich), vocabulary)
        plan = _plan(config, files, older, connection)
        habit = cache.habit(connection, config.enrich.model, older.now.prompt_version) or engine.prior(config.enrich)
        spent = cache.spent(connection, plan.keys)
    weighed = ray.data.from_arrow(catalogue.rows(config, plan.ask)).map_batches(
        partial(weigh, enrich=config.enrich, database_url=database_url), batch_format="pyarrow", batch_size=BATCH_ROWS
    )
    prompts = [batch.to_pydict() for batch in catalogue.tables(weighed)] if plan.ask else []
    shares = [share for batch in prompts for share in batch["share"] if share > 0]
    tokens_in = sum(sum(batch["prompt_bytes"]) for batch in prompts) * habit.tokens_per_byte
    tokens_out = sum(shares) * habit.tokens_out
    return {
        "products": products,
        "cached": plan.cached,
        "to_ask": len(shares),
        "backfill": sum(share < 1 for share in shares),
        "over_budget": plan.over_budget,
        "tokens_in": round(tokens_in),
        "tokens_out": round(tokens_out),
        "cost": round(cost(config.enrich, tokens_in, tokens_out), 6),
        "spent": round(cost(config.enrich, spent.tokens_in, spent.tokens_out), 6),
        "estimated_from_calls": habit.calls,
    }


def _waiting(facts: Mapping[str, Any]) -> int:
    """Answers that lack an image which may be had later."""
    images: dict[str, Any] = facts.get("images", {})
    return int(images.get("waiting", 0))


def _short(facts: Any) -> dict[str, Any]:
    """The facts without the long lists."""
    return {name: value for name, value in facts.items() if name not in ("unmapped", "unknown_keys", "ungrounded")}


def _plan(config: Config, files: Sequence[Path], older: Backfill, connection: cache.Connection) -> Plan:
    ids, hashes, askable = catalogue.scanned(config)
    origins, imported = _import(config, files, dict(zip(ids, hashes, strict=True)), older, connection)
    own = Origin(older.model, older.now.prompt_version)
    keys = [older.now.key(h, own.model) for h in hashes]
    there = cache.known(connection, sorted(set(keys)), config.enrich.max_output_tokens)
    every = [*(origin for origin in origins if origin != own), own]
    plan = choose(config.enrich, every, hashes, keys, askable, imported, there)
    ever = {e.key(h, own.model) for e in older.older for h in hashes}
    unasked = frozenset(product_id for product_id, may in zip(ids, askable, strict=True) if not may)
    return replace(plan, keys=[*plan.keys, *sorted(ever)], unasked=unasked)


def _label(config: Config, plan: Plan, connection: cache.Connection, database_url: str) -> Plan:
    """Let the tagger label what was not asked. Returns what is to ask then."""
    from rec.enrich import tag  # loads transformers, which takes seconds

    sample = tag.Sample(catalogue.rows(config, plan.taught), plan.origins)
    labels = tag.run(config, sample, catalogue.stream(config), database_url)
    if labels is None:
        return replace(plan, ask=[])
    there = cache.known(connection, list(labels.unsure), config.enrich.max_output_tokens)
    return plan.then(labels.origin, labels.unsure, there)


def _import(
    config: Config, files: Sequence[Path], hashes: dict[str, str], older: Backfill, connection: cache.Connection
) -> tuple[list[Origin], set[str]]:
    """Put the answers of `files` into the cache. Returns their origins and the texts, as content hashes, they are for.

    `hashes`: product id → content hash, images included. Answers of the configured model in an older edition that
    shares parts with the present one are there to be completed, and count for no text.
    """
    vocab_version = older.now.vocab_version
    editions = {(older.model, e.prompt_version, e.vocab_version): e for e in older.older}
    origins: dict[Origin, None] = {}
    imported: set[str] = set()
    for path in files:
        entries: dict[str, Answer] = {}
        stale = foreign = repeated = 0
        for found in imports.read(path, partial(catalogue.descriptions, config)):
            answer, now = found.answer, hashes.get(found.product_id)
            edition = editions.get((answer.model, answer.prompt_version, found.vocab_version or ""))
            if now is None:
                foreign += 1
            elif edition is not None and found.content_hash == now:
                entries.setdefault(edition.key(now, answer.model), answer)
            elif found.content_hash not in (None, now) or found.vocab_version not in (None, vocab_version):
                stale += 1
            else:
                key = cache.answer_key(now, answer.model, answer.prompt_version, vocab_version)
                repeated += entries.setdefault(key, answer).body != answer.body
                origins[Origin(answer.model, answer.prompt_version)] = None
                imported.add(now)
        rows = progress.progress(entries.items(), total=len(entries), what=f"import {path.name}")
        new = cache.put(connection, rows)
        log.info("%s: answers to %d texts (%d new), %d for other products", path.name, len(entries), new, foreign)
        if repeated:
            log.warning("%s: %d answers are left out: an earlier one to the same text differs", path.name, repeated)
        if stale:
            log.warning("%s: %d answers are left out: their text or vocabulary has changed", path.name, stale)
    return list(origins), imported


def _pace(enrich: Enrich, spent: cache.Usage) -> Pace | None:
    """What the workers share, when anything is limited. The budget counts what earlier runs spent on this catalogue."""
    if enrich.requests_per_minute is enrich.tokens_per_minute is enrich.max_cost is None and enrich.engine != "openai":
        return None
    left = None if enrich.max_cost is None else enrich.max_cost - cost(enrich, spent.tokens_in, spent.tokens_out)
    return Pace(enrich.requests_per_minute, enrich.tokens_per_minute, left)


def _ask(config: Config, plan: Plan, database_url: str, run_id: str, pace: Pace | None) -> tuple[dict[str, str], int]:
    """Ask the model for the plan's products. Returns when every answer is in the cache.

    The failures, by answer key, and how many products the budget did not pay for.
    """
    if not plan.ask:
        return {}, 0
    engine.require(config.enrich)  # here, where the error is one sentence and not a dead actor
    table = catalogue.rows(config, plan.ask)
    at_once = engine.concurrency(config.enrich)
    most = 4 if at_once == 1 else 16 * at_once  # at a batch's end the engine waits for its last answers
    rows = max(1, min(most, table.num_rows // (4 * config.enrich.num_actors)))
    blocks = [table.slice(start, rows) for start in range(0, table.num_rows, rows)]
    waiting = ray.data.from_arrow(blocks)
    waiting.context.enable_progress_bars = False
    if config.enrich.engine == "vllm":
        asked = stream.ask(waiting, config.enrich, database_url, run_id, pace)
    else:
        actors = waiting.map_batches(
            Ask,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=min(engine.cpus(config.enrich), config.cpus - 1),
            compute=ray.data.ActorPoolStrategy(size=config.enrich.num_actors),
            fn_constructor_args=(config.enrich, database_url, run_id, pace, engine.key(config.enrich)),
        )
        asked = catalogue.tables(actors)
    failures: dict[str, str] = {}
    unpaid = 0
    with progress.bar(total=table.num_rows, what=f"ask {config.enrich.model}", unit="product") as bar:
        for answers in asked:
            failed = answers.filter(answers["failure"].is_valid())
            failures |= dict(zip(failed["key"].to_pylist(), failed["failure"].to_pylist(), strict=True))
            unpaid += answers["unpaid"].drop_null().length()
            bar.update(answers.num_rows)
    if failures:
        log.warning("%d calls failed, one of them: %s; the next run asks again", len(failures), min(failures.values()))
    if unpaid:
        log.warning("enrich.max_cost is reached: %d products were not asked", unpaid)
    return failures, unpaid


def _finished_batches(
    config: Config,
    task: Callable[[pa.Table], Iterator[pa.Table]],
    report: Report,
    statuses: Counter[str],
    tokens: Counter[str],
    total: int,
) -> Iterator[pa.Table]:
    """Enriched rows in product order, made by `task`.

    Counts go to `report`, `statuses` and `tokens` on the way.
    """
    finished = catalogue.stream(config).map_batches(
        task, batch_format="pyarrow", batch_size=None, compute=catalogue.pool(config)
    )
    with progress.bar(total=total, what="enrich") as bar:
        for batch in catalogue.tables(finished):
            for text in batch["report"].drop_null().to_pylist():
                report.add(Report.from_json(text))
            statuses.update(batch["status"].to_pylist())
            for name in ("tokens_in", "tokens_out"):
                tokens[name] += sum(batch[name].to_pylist())
            bar.update(batch.num_rows)
            yield batch


def _then(
    batches: Iterator[pa.Table],
    facts: dict[str, Any],
    report: Report,
    statuses: Counter[str],
    tokens: Counter[str],
    human: Corrections,
) -> Iterator[pa.Table]:
    """`batches`, and after the last one the counts as `facts` for the manifest."""
    yield from batches
    facts["status"] = dict(sorted(statuses.items()))
    facts |= {**tokens, **report.facts(), "corrections": human.facts()}
