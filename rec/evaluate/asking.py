"""What the stage adds to the bare engine, and how well a dry run foretells its tokens: one run gives both.

    stage, bare part, stage ...     chunks of products; the bare engine answers a part of each chunk's prompts, half of
                                    them before the stage asks the chunk and half after it: drift of the machine cancels

The stage's time for a prompt is that from the commit before to its own; where a chunk begins there is none. Their ratio
on the same prompts is `pipeline.over.engine`. `whole` also counts all of each call of the stage that is not asking: the
scan, the actor's start with the loading of the model, and the last pass over all products.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rec import dataset, postgres
from rec.config import Config
from rec.data import ingest
from rec.enrich import backfill, cache, engine, stage
from rec.enrich.engine import Engine
from rec.enrich.prompt import Question
from rec.enrich.text import canonical
from rec.enrich.workers import question
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary

GOAL = 0.95
ERROR_GOAL = 0.15


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked."""

    first: int
    """Products of the first chunk, after which the second dry run is made."""
    chunks: int
    """Further chunks."""
    products: int
    """Of a further chunk."""
    bare: int
    """Prompts of such a chunk that the bare engine answers."""

    @property
    def total(self) -> int:
        """Products asked in all."""
        return self.first + self.chunks * self.products


FULL, QUICK = Size(20, 4, 120, 40), Size(8, 1, 16, 16)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the ledger has of a chunk."""

    stage_seconds: float
    """Of the whole call."""
    asking_seconds: float
    """From the first question to the last commit."""
    engine_seconds: float
    """Of these, within the engine."""
    gaps: dict[str, float]
    """Key → seconds since the commit before."""
    tokens_in: int
    tokens_out: int


def measure(config: Config, size: Size, resamples: int) -> Figures:
    """Figures of `size.total` products of `config`, whose store is empty."""
    ingest.run(config)
    questions = _questions(config, size.total)
    keys = list(questions)
    drawn = np.random.default_rng(config.seed)
    cold = stage.estimate(_most(config, size.total))
    bare = engine.load(config.enrich)
    answered = [_asked(config, size.first)]
    warm = stage.estimate(_most(config, size.total))
    alone: dict[str, float] = {}
    for start in range(size.first, len(keys), size.products):
        chunk = keys[start : start + size.products]
        # the first has no commit before it
        some = [chunk[1 + at] for at in drawn.permutation(len(chunk) - 1)[: size.bare].tolist()]
        alone |= _alone(bare, questions, some[: len(some) // 2], config.enrich.max_output_tokens)
        answered.append(_asked(config, start + len(chunk)))
        alone |= _alone(bare, questions, some[len(some) // 2 :], config.enrich.max_output_tokens)
    gaps = {key: seconds for chunk in answered[1:] for key, seconds in chunk.gaps.items()}
    pairs = np.array([(alone[key], gaps[key]) for key in alone if key in gaps])
    return speeds(pairs, answered[1:], resamples, config.seed) | {
        **errors("dryrun.cold.error", cold, answered),
        **errors("dryrun.error", warm, answered[1:], ERROR_GOAL),
        "dryrun.products": figure(len(keys), "products"),
    }


def speeds(pairs: np.ndarray, answered: Sequence[Answered], resamples: int, seed: int) -> Figures:
    """Ratios of throughput. `pairs`: float64[prompts, 2], seconds of the bare engine and of the stage."""
    drawn = pairs[np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))].sum(axis=1)
    bounds = interval((drawn[:, 0] / drawn[:, 1])[:, None])[:, 0].round(4).tolist()
    bare, within = pairs.sum(axis=0).tolist()
    asking = sum(chunk.asking_seconds for chunk in answered)
    whole = asking / sum(chunk.stage_seconds for chunk in answered)
    share = sum(chunk.engine_seconds for chunk in answered) / asking
    return {
        "pipeline.over.engine": figure(round(bare / within, 4), "ratio", bounds, GOAL),
        "pipeline.over.engine.whole": figure(round(bare / within * whole, 4), "ratio"),
        "pipeline.engine_share": figure(round(share, 4), "ratio"),
        "engine.seconds_per_product": figure(round(bare / len(pairs), 3), "s"),
        "pipeline.seconds_per_product": figure(round(within / len(pairs), 3), "s"),
    }


def errors(name: str, told: dict[str, int], answered: Sequence[Answered], goal: float | None = None) -> Figures:
    """Absolute relative errors of a dry run's tokens."""
    found = {}
    for tokens in ("tokens_in", "tokens_out"):
        real = sum(getattr(chunk, tokens) for chunk in answered)
        found[f"{name}.{tokens}"] = figure(round(abs(told[tokens] - real) / real, 4), "ratio", goal=goal)
    return found


def _most(config: Config, calls: int) -> Config:
    return config.model_copy(update={"enrich": config.enrich.model_copy(update={"max_calls": calls})})


def _questions(config: Config, most: int) -> dict[str, Question]:
    """Key → question of the first texts that the stage asks."""
    enrich, vocabulary = config.enrich, StdVocabulary.load(None)
    form = engine.form(enrich)
    now = backfill.edition(form, vocabulary)
    found: dict[str, Question] = {}
    for row in dataset.read(config.at("products"), PRODUCTS).to_pylist():
        text = canonical(row, enrich.max_text_chars)
        key = now.key(text.content_hash, enrich.model)
        if text.hostile is None and key not in found:
            asked = question(row, text, vocabulary, form)
            assert asked is not None
            found[key] = asked
        if len(found) == most:
            break
    return found


def _alone(bare: Engine, questions: dict[str, Question], keys: Sequence[str], max_tokens: int) -> dict[str, float]:
    """Key → seconds of the bare engine."""
    seconds = {}
    for key in keys:
        started = time.perf_counter()
        bare.complete(questions[key].prompt, questions[key].schema, max_tokens)
        seconds[key] = time.perf_counter() - started
    return seconds


def _asked(config: Config, calls: int) -> Answered:
    """Let the stage ask until `calls` products are asked in all."""
    database_url = postgres.url(config.store)
    with postgres.connect(database_url, autocommit=True) as connection:
        cache.prepare(connection)
        before = len(cache.called(connection))
        started = time.perf_counter()
        stage.run(_most(config, calls))
        seconds = time.perf_counter() - started
        calls_made = cache.called(connection)[before:]
    at = [call.at.timestamp() for call in calls_made]
    gaps = {call.key: at[n] - at[n - 1] for n, call in enumerate(calls_made) if n}
    return Answered(
        seconds,
        at[-1] - at[0] + calls_made[0].seconds,
        sum(call.seconds for call in calls_made),
        gaps,
        sum(call.tokens_in for call in calls_made),
        sum(call.tokens_out for call in calls_made),
    )
