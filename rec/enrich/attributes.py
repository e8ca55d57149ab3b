"""Attribute values with their source, and the two sources that need no model: the shop and the rules.

given   what the shop says, in its own words, brought to vocabulary values
rule    vocabulary names and aliases found in the text; `label: value` lines; the noun-like phrases around them
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from rec.enrich.text import Canonical
from rec.vocab.std import UNKNOWN, StdVocabulary

DETAIL = "detail"
"""The key of phrases that say something about a garment which no other key claims."""

MAX_MODIFIERS = 2
"""Words before a vocabulary word that belong to its phrase: `soft merino` wool."""
MAX_DETAILS = 6
MAX_WORDS = 5


@dataclass(frozen=True, slots=True)
class Attribute:
    """One value, as `rec.schema.ATTRIBUTE`."""

    key: str
    value: str
    source: str
    evidence: str | None


@dataclass(slots=True)
class Report:
    """What did not fit, counted and never silently dropped."""

    unmapped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(key, value) of given and model values that the vocabulary does not have."""
    unknown_keys: Counter[str] = field(default_factory=Counter)
    """Attribute names of the shop that are no vocabulary key."""
    ungrounded: Counter[str] = field(default_factory=Counter)
    """Key → model values dropped for want of evidence in the text."""
    images_sent: int = 0
    """Images that answers are about."""
    images_refused: Counter[str] = field(default_factory=Counter)
    """Reason → images that could not be had."""
    images_waiting: int = 0
    """Answers for which an image may be had later."""

    def facts(self, most: int = 200) -> dict[str, Any]:
        """JSON facts: totals, and the `most` frequent entries by count, then name."""
        unmapped = sorted(self.unmapped.items(), key=lambda entry: (-entry[1], entry[0]))
        images = {
            "sent": self.images_sent,
            "refused": dict(sorted(self.images_refused.items())),
            "waiting": self.images_waiting,
        }
        return {
            **({"images": images} if any(images.values()) else {}),
            "unmapped_total": self.unmapped.total(),
            "unmapped": [{"key": key, "value": value, "count": n} for (key, value), n in unmapped[:most]],
            "unknown_keys": dict(sorted(self.unknown_keys.items())),
            "ungrounded": dict(sorted(self.ungrounded.items())),
        }

    def to_json(self) -> str:
        """All counts, to travel between processes."""
        unmapped = [[key, value, n] for (key, value), n in self.unmapped.items()]
        images = [self.images_sent, self.images_refused, self.images_waiting]
        return json.dumps([unmapped, self.unknown_keys, self.ungrounded, *images], ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote."""
        unmapped, unknown_keys, ungrounded, sent, refused, waiting = json.loads(text)
        values = Counter({(k, v): n for k, v, n in unmapped})
        return Report(values, Counter(unknown_keys), Counter(ungrounded), sent, Counter(refused), waiting)

    def add(self, other: "Report") -> None:
        """Count what `other` counted as well."""
        self.unmapped += other.unmapped
        self.unknown_keys += other.unknown_keys
        self.ungrounded += other.ungrounded
        self.images_sent += other.images_sent
        self.images_refused += other.images_refused
        self.images_waiting += other.images_waiting


def from_shop(
    attributes: Mapping[str, Sequence[str]], vocabulary: StdVocabulary, report: Report
) -> tuple[list[Attribute], list[Attribute]]:
    """(STD, RE) of the attributes the shop gave; words without an STD value are kept as RE."""
    std: list[Attribute] = []
    re: list[Attribute] = []
    for name, raws in attributes.items():
        key = vocabulary.key_of(name)
        if key is None:
            report.unknown_keys[name] += 1
            continue
        for raw in raws:
            found = vocabulary.normalise(key, raw)
            std += [Attribute(key, value, "given", raw) for value in found.values]
            re += [Attribute(key, value, "given", raw) for value in found.unmapped]
            report.unmapped.update((key, value) for value in found.unmapped)
            if found.unmapped and not found.values:
                std.append(Attribute(key, UNKNOWN, "given", raw))
    return std, re


def from_rules(text: Canonical, vocabulary: StdVocabulary) -> tuple[list[Attribute], list[Attribute]]:
    """(STD, RE) that the text states in vocabulary words, and the phrases of the body."""
    std = [Attribute(key, value, "rule", span) for key, value, span in vocabulary.find_all(text.text)]
    re: list[Attribute] = []
    for label, value in text.labelled():
        key = vocabulary.key_of(label)
        if key is not None:
            re.append(Attribute(key, " ".join(value.split()[:MAX_WORDS]), "rule", value))
    hits: dict[str, str] = {}
    for attribute in std:
        hits.setdefault((attribute.evidence or "").casefold(), attribute.key)
    ends = {words.rpartition(" ")[2] for words in hits}
    details: dict[str, None] = {}
    for run in text.runs:
        claims = list(_claims(run, hits, ends))
        re += [Attribute(key, phrase, "rule", phrase) for key, phrase in claims if phrase.casefold() not in hits]
        if not claims:
            details[" ".join(run[:MAX_WORDS])] = None
    re += [Attribute(DETAIL, phrase, "rule", phrase) for phrase in list(details)[:MAX_DETAILS]]
    return std, re


def _claims(run: list[str], hits: Mapping[str, str], ends: Set[str]) -> Iterator[tuple[str, str]]:
    """(key, phrase) of each vocabulary word in a run of words, with the words before it that qualify it.

    `ends`: last words of `hits`. A Korean word also counts where it only begins with a hit.
    """
    folded = [word.casefold() for word in run]
    plain = all(map(str.isascii, folded))
    for last in range(len(run)):
        if plain and folded[last] not in ends:
            continue
        for length in range(min(last + 1, MAX_WORDS), 0, -1):
            key = _claimed(" ".join(folded[last - length + 1 : last + 1]), hits)
            if key is not None:
                yield key, " ".join(run[max(0, last - length + 1 - MAX_MODIFIERS) : last + 1])
                break


def _claimed(words: str, hits: Mapping[str, str]) -> str | None:
    """The key of a vocabulary word; a Korean one of two or more syllables may carry a particle or an ending."""
    if words.isascii():
        return hits.get(words)
    return next((hits[words[:n]] for n in range(len(words), 1, -1) if words[:n] in hits), hits.get(words))
