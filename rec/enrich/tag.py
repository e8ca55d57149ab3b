"""The tagger in the enrichment stage: it learns from the answers to a sample and labels the products without one.

Labels are put into the answer cache like answers, under the model TAGGER and the hash of the tagger's artifact, so that
the last pass reads, grounds and normalises them as it does an engine's, and prefers an engine's where there is
one. It reads spans of the body under RE keys; STD values follow where the vocabulary knows a span's words. Values that
need no words in the text it concludes under the inferable keys of which the answers hold values, and names one where it
is likelier than all others and none together.

The artifact depends on the sample alone: a killed and restarted stage finds it again, or makes it again from the same
answers, and is unsure of the same products.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from pydantic import ValidationError

from rec import artifact, postgres
from rec.config import Config, Enrich, Text
from rec.enrich import cache, engine
from rec.enrich.answers import TAGGER, Answer
from rec.enrich.attributes import Report, from_rules, from_shop
from rec.enrich.prompt import Body
from rec.enrich.text import Canonical, given, shown
from rec.enrich.workers import BATCH_ROWS, Origin
from rec.models import tagger, text_encoder
from rec.models.tagger import Reading
from rec.train import tagger as training
from rec.train.tagger import Example
from rec.vocab.std import UNKNOWN, StdVocabulary

GROUP = "product"
"""The one group of attributes: all keys are open to every product."""
LIKELY = 0.5
"""Probability beyond which a value is concluded."""
MIN_EXAMPLES = 20
"""Texts with a value that it takes to teach anything."""

UNSURE = pa.schema([("key", pa.string()), ("confidence", pa.float64())])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """What teaches the tagger."""

    products: pa.Table
    """Products that have an answer."""
    origins: list[Origin]
    """Where answers come from, the preferred ones first; the engine's own is the last."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the tagger made of a catalogue."""

    origin: Origin
    unsure: dict[str, float]
    """Key that the engine's own answer would have → confidence, below `min_confidence`."""


def run(config: Config, sample: Sample, products: ray.data.Dataset, database_url: str) -> Labels | None:
    """Train unless it is done, and put labels of all other `products` into the cache.

    None when the answers to the sample say too little to teach anything.
    """
    examples = learn(sample, config.enrich, database_url)
    telling = sum(bool(example.values) for example in examples)
    if telling < MIN_EXAMPLES:
        log.warning(
            "tagger: %d of %d answers have a value in the text, at least %d are needed: no product is labelled",
            telling,
            len(examples),
            MIN_EXAMPLES,
        )
        return None
    origin = Origin(TAGGER, _trained(config, examples))
    with postgres.session(database_url, autocommit=True) as connection:
        cache.forget(connection, TAGGER, origin.prompt_version)
    cpus = max(1, min(config.text.cpus_per_actor, config.cpus - 1))
    labelled = products.map_batches(
        Label,
        batch_format="pyarrow",
        batch_size=BATCH_ROWS,
        num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=config.text.num_actors),
        fn_constructor_args=(
            config.at(TAGGER),
            origin,
            config.enrich,
            database_url,
            sample.origins[:-1],
            cpus,
        ),
    )
    unsure: dict[str, float] = {}
    for batch in labelled.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(batch, pa.Table)
        unsure |= dict(zip(batch["key"].to_pylist(), batch["confidence"].to_pylist(), strict=True))
    log.info("tagger: unsure of %d texts", len(unsure))
    return Labels(origin, unsure)


def learn(sample: Sample, enrich: Enrich, database_url: str) -> list[Example]:
    """What the cached answers to the sample say, in words of each product's body; each text once."""
    vocabulary = StdVocabulary.load(None)
    rows = {(text := shown(row, enrich)).subject: (text, row) for row in sample.products.to_pylist()}
    with postgres.session(database_url, autocommit=True) as connection:
        told = _told(connection, list(rows), sample.origins, vocabulary, enrich)
    made = []
    for subject, answer in sorted(told.items()):
        try:
            body = Body.model_validate_json(answer.body)
        except ValidationError:
            continue  # the last pass says so of the product
        text, row = rows[subject]
        own = Origin(answer.model, answer.prompt_version) == sample.origins[-1]
        silent = _filled(row, text, vocabulary) if own else vocabulary.keys
        made.append(_example(text, body, silent, vocabulary))
    return made


def _told(
    connection: cache.Connection,
    subjects: Sequence[str],
    origins: Sequence[Origin],
    vocabulary: StdVocabulary,
    enrich: Enrich,
) -> dict[str, Answer]:
    """Subject → the best origin's answer."""
    told: dict[str, Answer] = {}
    for origin in origins:
        keys = {cache.answer_key(s, origin.model, origin.prompt_version, vocabulary.asked): s for s in subjects}
        for key, answer in cache.fetch(connection, list(keys), enrich.max_output_tokens).items():
            told.setdefault(keys[key], answer)
    return told


def _filled(row: Mapping[str, Any], text: Canonical, vocabulary: StdVocabulary) -> set[str]:
    """STD keys that shop or rules fill: an answer need not say anything of them."""
    shop, _ = from_shop(given(row), vocabulary, Report())
    rules, _ = from_rules(text, vocabulary)
    return {attribute.key for attribute in (*shop, *rules)}


def _example(text: Canonical, body: Body, silent: Collection[str], vocabulary: StdVocabulary) -> Example:
    """`silent`: STD keys that the answer was not asked for (an imported one: all): it teaches no absence of them."""
    values: dict[str, list[str]] = {}
    for key, said in body.re.items():
        spans = [span for value in said if (span := text.span(value)) is not None]
        if key in vocabulary.keys and spans:
            values[key] = spans
    concluded = {}
    for key in filter(vocabulary.inferable, vocabulary.keys):
        named = [name for value in body.std.get(key, ()) for name in vocabulary.normalise(key, value).values]
        said = [name for name in named if name != UNKNOWN]
        if said or key not in silent:
            concluded[key] = said
    return Example(GROUP, text.body, values, concluded)


def _trained(config: Config, examples: list[Example]) -> str:
    """Make the tagger's artifact unless it is there, in a task. Returns its content hash."""
    told = json.dumps([asdict(example) for example in examples], sort_keys=True, ensure_ascii=False)
    inputs = {"examples": hashlib.sha256(told.encode()).hexdigest()}
    target = config.at(TAGGER)
    files = text_encoder.files(config.text, artifact.peek(target))
    branch = {"encoder": config.text.encoder, "epochs": config.enrich.tagger.epochs, **files}
    done = artifact.finished(target, kind=tagger.KIND, version=tagger.VERSION, inputs=inputs, config=branch)
    if done is None:
        log.info("tagger: learns from %d answers", len(examples))
        threads = max(1, config.cpus - 1)
        task = ray.remote(num_cpus=threads)(_train)
        ray.get(task.remote(target, examples, config.text, inputs, branch, threads))
        done = artifact.read(target, kind=tagger.KIND, version=tagger.VERSION, made_by=tagger.MADE_BY)
    return done.content_hash


def _train(
    target: Path, examples: list[Example], text: Text, inputs: dict[str, str], branch: dict[str, Any], threads: int
) -> None:
    torch.set_num_threads(threads)
    model = training.fit(examples, text, epochs=branch["epochs"], alike=True)
    training.save(model, target, inputs=inputs, config=branch, examples=len(examples))


class Label:
    """An actor with the tagger: commits labels of products that no answer was imported for.

    The engine's own answers are no reason to leave a text out: what a killed run asked last would else change what the
    next one is unsure of; and where a call fails, the labels stand in.
    """

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        enrich: Enrich,
        database_url: str,
        imported: Sequence[Origin],
        threads: int,
    ) -> None:
        """`imported`: origins of imported answers."""
        torch.set_num_threads(threads)
        self._model = tagger.load(folder)
        self._origin = origin
        self._enrich = enrich
        self._own = Origin(enrich.model, engine.form(enrich).version)
        self._imported = imported
        self._vocabulary = StdVocabulary.load(None)
        self._connection = postgres.connect(database_url, autocommit=True)

    @postgres.refusals()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of UNSURE: texts that it read with too little confidence."""
        texts = self._open([shown(row, self._enrich) for row in batch.to_pylist()])
        readings = self._model.readings([GROUP] * len(texts), [text.body for text in texts])
        cache.put(self._connection, map(self._label, texts, readings))
        unsure = [
            {"key": self._key(text, self._own), "confidence": reading.confidence}
            for text, reading in zip(texts, readings, strict=True)
            if reading.confidence < self._enrich.tagger.min_confidence
        ]
        return pa.Table.from_pylist(unsure, schema=UNSURE)

    def _open(self, texts: Sequence[Canonical]) -> list[Canonical]:
        """Those to label, identical texts once."""
        distinct = {text.subject: text for text in texts if text.askable}
        told = _told(self._connection, list(distinct), self._imported, self._vocabulary, self._enrich)
        return [text for subject, text in distinct.items() if subject not in told]

    def _key(self, text: Canonical, origin: Origin) -> str:
        return cache.answer_key(text.subject, origin.model, origin.prompt_version, self._vocabulary.asked)

    def _label(self, text: Canonical, reading: Reading) -> tuple[str, Answer]:
        """An entry of the cache; the values of a key in text order, each once."""
        values: dict[str, dict[str, None]] = {}
        for key, value, _ in reading.spans:
            values.setdefault(key, {})[value] = None
        std = {key: [value] for key, (value, likely) in reading.concluded.items() if likely > LIKELY}
        body = Body(re={key: list(said) for key, said in values.items()}, std=std).dump()
        answer = Answer(self._origin.model, self._origin.prompt_version, "finished", body, 0, 0)
        return self._key(text, self._origin), answer
