"""Closed vocabulary: which STD value does an article have, read from its `detail_desc` alone?

Gold are three columns of the H&M articles, brought to vocabulary values; an article whose value does not map is left
out of that column (`mapped` is the share of the others). Texts are distinct descriptions, none both taught and read. An
answer is worth the share of the text's articles that have it, for one description may have articles of ten colours.

The tagger is taught with gold values here, and engine and tagger are asked for keys of which the shop usually gives the
values: this measures what they can read, not the enrichment stage, where a model's answers teach the tagger, and it
concludes the inferable keys alone.

    llm        the embedded engine, held to the values of each key, after the SHOTS nearest of the POOL of taught texts
    nearest    the values of the nearest taught text, without any model: what remembering alone is worth
    tagger     what the tagger concludes, whatever words the text has
    spans      the vocabulary values in the words that the same tagger reads
    words      the best of all vocabulary values that the text names: no reading of words alone is better
    rules      the first of them
    majority   the most frequent value of the taught texts
    ceiling    the most frequent value among the text's own articles: no reading of the text is better

Most texts have one article, of which the ceiling is sure. The figures are in rec/README.md.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rec.config import Config
from rec.enrich import engine, oamine
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval, resampled_means
from rec.evaluate.zero_shot import ARTICLES, STD_COLUMNS
from rec.log import progress
from rec.models import text_encoder
from rec.models.tagger import Reading
from rec.train import tagger as training
from rec.train.tagger import Example
from rec.vocab.std import UNKNOWN, StdVocabulary

KEYS = ("category", "pattern", "colour")
GROUP = "product"
SHOTS = 4
MAX_TOKENS = 60
"""Longest answer of the engine."""
NEAR_TOKENS = 64
"""Tokens of a text by which its neighbours are found."""
MOST = 20
"""Articles of one text and value that count when it is taught."""

Credits = NDArray[np.float64]
"""float64[texts, KEYS]: what each answer is worth, NaN where no gold value is mapped."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """How much is done; epochs of the tagger, of which one network is trained."""

    taught: int
    epochs: int
    read: int
    asked: int
    """Texts that the engine reads, the first of `read`."""
    pool: int
    """Taught texts among which those to show to the engine are looked for."""


FULL = Work(taught=6_000, epochs=1, read=2_000, asked=200, pool=2_000)
QUICK = Work(taught=1_000, epochs=1, read=400, asked=16, pool=400)


@dataclass(frozen=True, slots=True)
class Described:
    """A description, and of each key how many of its articles have which value; a key without any is left out."""

    text: str
    gold: Mapping[str, Counter[str]]

    def credit(self, key: str, value: str | None) -> float:
        """What `value` is worth."""
        counts = self.gold.get(key)
        return counts[value] / counts.total() if counts and value else (0.0 if counts else np.nan)

    def usual(self, key: str) -> str | None:
        """The value that most of its articles have."""
        return self.gold[key].most_common(1)[0][0] if key in self.gold else None


def read(folder: Path, std: StdVocabulary) -> tuple[list[Described], dict[str, float]] | None:
    """(descriptions in a fixed order, key → share of described articles that map); None without the file."""
    if not (folder / ARTICLES).is_file():
        return None
    table = pq.read_table(folder / ARTICLES, columns=["detail_desc", *(STD_COLUMNS[key] for key in KEYS)])
    texts = table["detail_desc"].to_pylist()
    gold: dict[str, dict[str, Counter[str]]] = {text: {} for text in sorted({text for text in texts if text})}
    shares = {}
    for key in KEYS:
        given = table[STD_COLUMNS[key]].to_pylist()
        values = {raw: std.normalise(key, raw).values for raw in set(given) if raw}
        mapped = 0
        for text, raw in zip(texts, given, strict=True):
            found = values.get(raw, [])
            if text and len(found) == 1 and found != [UNKNOWN]:
                gold[text].setdefault(key, Counter())[found[0]] += 1
                mapped += 1
        shares[key] = mapped / max(sum(bool(text) for text in texts), 1)
    return [Described(text, counts) for text, counts in gold.items()], shares


def split(described: Sequence[Described], work: Work, seed: int) -> tuple[list[Described], list[Described]]:
    """(texts to teach, texts to read)."""
    order = np.random.default_rng(seed).permutation(len(described)).tolist()
    held_out = min(work.read, len(order) // 2)
    chosen = [described[row] for row in order[: held_out + work.taught]]
    return chosen[held_out:], chosen[:held_out]


def figures(
    described: Sequence[Described], shares: Mapping[str, float], std: StdVocabulary, config: Config, work: Work
) -> Figures:
    """Accuracy of every way to conclude a value, by key and their mean, with intervals over texts."""
    taught, held_out = split(described, work, config.seed)
    asked = held_out[: work.asked]
    log.info("closed vocabulary: %d texts are taught, %d read, %d asked", len(taught), len(held_out), len(asked))
    usual = {key: _most(taught, key) for key in KEYS}
    named = [{key: [value for value, _ in std.find(key, d.text)] for key in KEYS} for d in held_out]
    readings, seconds = _readings(taught, held_out, std, config, work)
    concluded = [{key: value for key, (value, _) in reading.concluded.items()} for reading in readings]
    near = _nearest(taught[: work.pool], asked, config)
    remembered = _nearest(taught, held_out, config)
    ways = {
        "tagger": _credits(held_out, concluded),
        "spans": _credits(held_out, [_spanned(reading, std) for reading in readings]),
        "words": _table(held_out, lambda row, d, key: max((d.credit(key, v) for v in named[row][key]), default=0.0)),
        "rules": _credits(held_out, [{key: next(iter(found[key]), None) for key in KEYS} for found in named]),
        "majority": _credits(held_out, [usual] * len(held_out)),
        "ceiling": _table(held_out, lambda _, d, key: d.credit(key, d.usual(key))),
        "nearest": _credits(held_out, [{key: shots[-1].usual(key) for key in KEYS} for shots in remembered]),
        "llm": _credits(asked, _answers(asked, near, std, config)),
    }
    made: Figures = {}
    resamples, seed = config.evaluate.bootstrap, config.seed
    for key in KEYS:
        made[f"hm.{key}.mapped"] = figure(round(shares[key], 4), "ratio")
        made[f"hm.{key}.named"] = figure(round(float(np.mean([bool(found[key]) for found in named])), 4), "ratio")
    for name, credits in ways.items():
        made |= _summary(f"hm.{name}", *_means(credits, resamples, seed), "accuracy")
    for other in ("llm", "nearest"):
        texts = len(ways[other])
        (tagger, tagger_drawn), (its, its_drawn) = (
            _means(ways[name][:texts], resamples, seed) for name in ("tagger", other)
        )
        made |= _summary(f"hm.tagger.minus.{other}", tagger - its, tagger_drawn - its_drawn, "difference")
    return made | {"hm.tagger.products_per_s": figure(round(len(held_out) / max(seconds, 1e-9), 1), "products/s")}


def _most(taught: Sequence[Described], key: str) -> str | None:
    counts = Counter(value for d in taught for value in [d.usual(key)] if value)
    return max(sorted(counts), key=lambda value: counts[value], default=None)


def _table(texts: Sequence[Described], worth: Callable[[int, Described, str], float]) -> Credits:
    """`worth` of each text under each key, NaN where it has no gold value."""
    rows = [[worth(row, d, key) if key in d.gold else np.nan for key in KEYS] for row, d in enumerate(texts)]
    return np.array(rows, np.float64)


def _credits(texts: Sequence[Described], said: Sequence[Mapping[str, str | None]]) -> Credits:
    """What the values said of the texts are worth."""
    return _table(texts, lambda row, d, key: d.credit(key, said[row].get(key)))


def example(described: Described, std: StdVocabulary) -> Example:
    """What a text teaches: the words of its own values where it names them, and the values themselves."""
    spans = {
        key: [span for v, span in std.find(key, described.text) if v in described.gold.get(key, ())] for key in KEYS
    }
    concluded = {
        key: [value for value, count in counts.items() for _ in range(min(count, MOST))]
        for key, counts in described.gold.items()
    }
    return Example(GROUP, described.text, {key: said for key, said in spans.items() if said}, concluded)


def _readings(
    taught: Sequence[Described], texts: Sequence[Described], std: StdVocabulary, config: Config, work: Work
) -> tuple[list[Reading], float]:
    """What a tagger reads that is taught here, and the seconds of its reading."""
    examples = [example(d, std) for d in taught]
    model = training.fit(examples, config.text, epochs=work.epochs, networks=1, alike=True)
    started = time.perf_counter()
    found = model.readings([GROUP] * len(texts), [d.text for d in texts])
    return found, time.perf_counter() - started


def _spanned(reading: Reading, std: StdVocabulary) -> dict[str, str]:
    """Key → the first vocabulary value in its surest span that has one."""
    found: dict[str, str] = {}
    for key, span, _ in sorted(reading.spans, key=lambda span: -span[2]):
        for value, _ in std.find(key, span):
            found.setdefault(key, value)
    return found


def _nearest(pool: Sequence[Described], texts: Sequence[Described], config: Config) -> list[list[Described]]:
    """Of each text the SHOTS most similar texts with all values, the most similar one last."""
    whole = [d for d in pool if len(d.gold) == len(KEYS)]
    encoder = text_encoder.load(config.text.model_copy(update={"max_tokens": NEAR_TOKENS}))
    similar = encoder.embed([d.text for d in texts]) @ encoder.embed([d.text for d in whole]).T
    return [[whole[at] for at in np.argsort(row, kind="stable")[-SHOTS:].tolist()] for row in similar]


def _answers(
    texts: Sequence[Described], near: Sequence[Sequence[Described]], std: StdVocabulary, config: Config
) -> list[dict[str, Any]]:
    """The engine's value of each key."""
    engine.require(config.enrich)
    model = engine.load(config.enrich, key=engine.key(config.enrich))
    schema = {
        "type": "object",
        "properties": {key: {"enum": std.values(key)} for key in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    }
    task = "Read the attributes out of each product description."
    made = []
    asking = progress(list(zip(texts, near, strict=True)), total=len(texts), what="closed vocabulary", unit="text")
    for described, shown in asking:
        shots = [(shot.text, {key: shot.usual(key) for key in KEYS}) for shot in shown]
        prompt = oamine.few_shots(task, "Description", shots, described.text)
        made.append(oamine.parse(model.complete(prompt, schema, MAX_TOKENS).text))
    return made


def _means(credits: Credits, resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy by key and their mean float64[K + 1], and the same of each resample; a seed draws the same texts."""
    known = ~np.isnan(credits)
    parts = np.concatenate([np.nan_to_num(credits), known], axis=1)
    means = np.vstack([parts.mean(axis=0), resampled_means(parts, resamples, seed)])
    ratios = means[:, : len(KEYS)] / np.maximum(means[:, len(KEYS) :], 1e-9)
    whole = np.column_stack([ratios, ratios.mean(axis=1)])
    return whole[0], whole[1:]


def _summary(name: str, values: NDArray[np.float64], drawn: NDArray[np.float64], unit: str) -> Figures:
    bounds = interval(drawn).round(4).tolist()
    goal = 0.0 if unit == "difference" else None
    return {
        f"{name}.{key}.accuracy": figure(round(float(value), 4), unit, [low, high], goal)
        for key, value, low, high in zip((*KEYS, "mean"), values, *bounds, strict=True)
    }
