"""From the words of an answer to attribute values: validation, normalisation, grounding, merging.

An answer is JSON, `{"re": {key: [value]}, "std": {key: [value]}}`. Precedence is given > rule > llm, or the tagger
where no answer of a model is: an STD key that a better source filled takes no further values; RE values add up, a
repeated one keeps its best source.
A model value without evidence in the text is dropped and counted, but for keys that may be inferred.

What images show is `{"seen": {key: [value]}}`: values of the vocabulary alone, whose evidence is the hashes of the
images that were sent, for keys of which the text says nothing.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rec.enrich.attributes import Attribute, Report
from rec.enrich.places import Pictures
from rec.enrich.prompt import Body
from rec.enrich.text import Canonical
from rec.vocab.std import StdVocabulary

MAX_VALUE_CHARS = 60
MAX_RE_PER_KEY = 8
LLM = "llm"
"""What values of a language model's answer name as their source."""
TAGGER = "tagger"
"""What the tagger's labels name as their model, and their values as the source."""
LABELS = 2
"""Rises when taggers label otherwise after the same answers: catalogues with their labels are then enriched again."""


SHORT = "short"
"""State of an answer for which an image could not be had that may be had later."""
IMAGE = "image:"
"""Before the hashes of images in the evidence of a value."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the cache keeps it."""

    model: str
    prompt_version: str
    state: str
    """`finished`, `cut` by the token budget, or SHORT."""
    body: str
    tokens_in: int
    tokens_out: int
    images: str | None = None
    """Its Pictures as JSON; None where no image was to be shown."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an answer came to."""

    status: str
    """ok | partial | invalid | refused | quarantined"""
    reason: str | None
    std: list[Attribute]
    re: list[Attribute]


def read(answer: Answer, text: Canonical, vocabulary: StdVocabulary, report: Report) -> Outcome:
    """The grounded and normalised values of `answer`; what is dropped is counted in `report` and in the reason."""
    pictures = Pictures() if answer.images is None else Pictures.model_validate_json(answer.images)
    report.images_sent += len(pictures.sent)
    report.images_refused.update(pictures.refused)
    report.images_waiting += answer.state == SHORT
    try:
        body = Body.model_validate_json(answer.body)
    except ValidationError as error:
        why = "the token budget cut it" if answer.state == "cut" else error.errors()[0]["msg"]
        return Outcome("invalid", f"answer of {answer.model}: {why}", [], [])
    source = TAGGER if answer.model == TAGGER else LLM
    dropped = 0
    std: list[Attribute] = []
    re: list[Attribute] = []
    for key, values in body.re.items():
        for value in values:
            evidence = text.span(value)
            if key not in vocabulary.keys or not _fits(value) or (evidence is None and not vocabulary.inferable(key)):
                report.ungrounded[key] += 1
                dropped += 1
                continue
            re.append(Attribute(key, value, source, evidence))
            if evidence is not None:
                std += [Attribute(key, name, source, evidence) for name, _ in vocabulary.find(key, value)]
    for key, values in body.std.items():
        for value in values:
            kept = _std(key, value, source, text, vocabulary, report)
            dropped += not kept
            std += kept
    said = {attribute.key for attribute in std}
    for key, values in body.seen.items():
        shown = _seen(key, values, pictures, vocabulary, report)
        dropped += len(values) - len(shown)
        std += shown if key not in said else []
    reasons = [f"{dropped} values without evidence or vocabulary entry"] if dropped else []
    if answer.state == SHORT:
        reasons.append("an image could not be had: the next run tries again")
    return Outcome("partial" if reasons else "ok", "; ".join(reasons) or None, std, re)


def _seen(
    key: str, values: list[str], pictures: Pictures, vocabulary: StdVocabulary, report: Report
) -> list[Attribute]:
    """The values that images may show: those of the vocabulary, to the letter, and only where an image was sent."""
    if key not in vocabulary.keys:
        report.unknown_keys[key] += 1
        return []
    if not pictures.sent:
        report.ungrounded[key] += len(values)
        return []
    known = vocabulary.values(key)
    report.unmapped.update((key, value) for value in values if value not in known)
    evidence = IMAGE + ",".join(pictures.sent)
    return [Attribute(key, value, LLM, evidence) for value in values if value in known]


def _fits(value: str) -> bool:
    return 0 < len(value.strip()) <= MAX_VALUE_CHARS


def _std(
    key: str, value: str, source: str, text: Canonical, vocabulary: StdVocabulary, report: Report
) -> list[Attribute]:
    if key not in vocabulary.keys:
        report.unknown_keys[key] += 1
        return []
    found = vocabulary.normalise(key, value)
    report.unmapped.update((key, unmapped) for unmapped in found.unmapped)
    kept = []
    for name in found.values:
        evidence = text.span(value) or text.span(name)
        if evidence is None and not vocabulary.inferable(key):
            report.ungrounded[key] += 1
        else:
            kept.append(Attribute(key, name, source, evidence))
    return kept


def merge_std(*sources: list[Attribute]) -> list[Attribute]:
    """Values of the first source that fills a key, in source order; each (key, value) once."""
    merged: dict[tuple[str, str], Attribute] = {}
    filled: set[str] = set()
    for source in sources:
        kept = [a for a in source if a.key not in filled]
        for attribute in kept:
            merged.setdefault((attribute.key, attribute.value), attribute)
        filled.update(a.key for a in kept)
    return list(merged.values())


def merge_re(*sources: list[Attribute]) -> list[Attribute]:
    """All values, each (key, casefolded value) once from its best source, at most MAX_RE_PER_KEY a key."""
    merged: dict[tuple[str, str], Attribute] = {}
    counts: dict[str, int] = {}
    for attribute in (a for source in sources for a in source):
        name = (attribute.key, attribute.value.casefold())
        if name not in merged and counts.get(attribute.key, 0) < MAX_RE_PER_KEY:
            merged[name] = attribute
            counts[attribute.key] = counts.get(attribute.key, 0) + 1
    return list(merged.values())


def rows(attributes: list[Attribute]) -> list[dict[str, Any]]:
    """Attributes as values of the column type `rec.schema.ATTRIBUTES`."""
    return [{"key": a.key, "value": a.value, "source": a.source, "evidence": a.evidence} for a in attributes]
