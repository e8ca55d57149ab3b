"""The tagger on OA-Mine titles: trained on split `train`, scored as the engine is (`rec.enrich.oamine`).

Dev part: a fifth of the train titles that are not in `train_0.2`, the tagger being trained on all others. With
`test` it is trained on all of `train` and reads split `test`. A gold value of an attribute that no training title has
counts as missed, and no held-out text is trained on.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rec.config import Text
from rec.enrich import oamine
from rec.enrich.oamine import Title
from rec.evaluate.benchmark import SCORES, Figures, figure, micro, scores
from rec.train import tagger as training
from rec.train.tagger import Example

F1_GOAL = 0.80
SPEED_GOAL = 200.0
DEV_PART = 5
SECONDS, QUICK_SECONDS = 900.0, 120.0
"""Longest training."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the tagger read."""

    attributes: list[str]
    counts: np.ndarray
    """int64[titles, attributes, 4], decisions."""
    seconds_per_title: float


def split(path: Path, *, test: bool) -> tuple[list[Title], list[Title]]:
    """(titles to train on, titles to read)."""
    pool, others = oamine.read(path, test=False)
    if test:
        _, held_out = oamine.read(path, test=True)
    else:
        held_out = others[: -(-len(others) // DEV_PART)]
    known = {title.text for title in held_out}
    return [title for title in [*pool, *others] if title.text not in known], held_out


def measure(path: Path, text: Text, *, test: bool, seconds: float, epochs: int = training.EPOCHS) -> Measured:
    """Train a tagger for at most `seconds`, and let it read the held-out titles."""
    learned, asked = split(path, test=test)
    model = training.fit([Example(t.category, t.text, t.gold) for t in learned], text, epochs=epochs, seconds=seconds)
    readable = [t for t in asked if t.category in model.schema.groups]
    started = time.perf_counter()
    read = model.read([t.category for t in readable], [t.text for t in readable])
    spent = time.perf_counter() - started
    said = {(t.category, t.text): values for t, values in zip(readable, read, strict=True)}
    attributes = sorted({*model.schema.attributes, *(name for t in asked for name in t.gold)})
    counts = np.zeros((len(asked), len(attributes), 4), np.int64)
    for row, title in enumerate(asked):
        values = said.get((title.category, title.text), {})
        for column, name in enumerate(attributes):
            counts[row, column] = oamine.decision(values.get(name), title.gold.get(name, []))
    return Measured(attributes, counts, spent / max(len(readable), 1))


def figures(measured: Measured, llm_seconds_per_title: float, *, resamples: int, seed: int) -> Figures:
    """Micro scores with intervals over titles, F1 of each attribute, and products/s over those of the engine."""
    made = micro("oamine.tagger", measured.counts.sum(axis=1), resamples=resamples, seed=seed, f1_goal=F1_GOAL)
    f1 = scores(measured.counts.sum(axis=0)[:, oamine.STRICT])[:, SCORES.index("f1")]
    for name, value in zip(measured.attributes, f1, strict=True):
        made[f"oamine.tagger.attribute.{name}.f1"] = figure(round(float(value), 4), "ratio")
    ratio = llm_seconds_per_title / max(measured.seconds_per_title, 1e-9)
    return made | {"tagger.over.llm": figure(round(ratio, 1), "times", goal=SPEED_GOAL)}
