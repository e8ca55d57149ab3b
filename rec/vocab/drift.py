"""Drift report: how well the vocabularies cover the products of one run, and what changed since the last one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rec.errors import DriftError
from rec.vocab.re import UNKNOWN_ID, ReVocabulary
from rec.vocab.std import UNKNOWN

LISTED = 200
"""Tokens listed by name; the totals count all."""

STD, RE, TOKEN, KEY = "std", "re", "token", "key"


@dataclass(slots=True)
class Counts:
    """Products that carry something; the reduce of counting. Adding batches in any order gives the same counts."""

    products: int = 0
    std: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(key, value) → products."""
    re: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(key, token) → products."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Token → products, under whatever key."""
    std_keys: Counter[str] = field(default_factory=Counter)
    """Key → products with any STD value under it."""

    def table(self) -> pa.Table:
        """The counts as rows (kind, key, value, count), to travel between processes."""
        rows = [("products", "", "", self.products)]
        rows += [(STD, key, value, count) for (key, value), count in self.std.items()]
        rows += [(RE, key, token, count) for (key, token), count in self.re.items()]
        rows += [(TOKEN, "", token, count) for token, count in self.tokens.items()]
        rows += [(KEY, key, "", count) for key, count in self.std_keys.items()]
        kinds, keys, values, counts = zip(*rows, strict=True)
        return pa.table(
            {
                "kind": pa.array(kinds, pa.string()),
                "key": pa.array(keys, pa.string()),
                "value": pa.array(values, pa.string()),
                "count": pa.array(counts, pa.int64()),
            }
        )

    def add(self, table: pa.Table) -> None:
        """Add the rows of another batch's `table`."""
        columns = [table.column(name).to_pylist() for name in ("kind", "key", "value", "count")]
        for kind, key, value, count in zip(*columns, strict=True):
            match kind:
                case "std":
                    self.std[key, value] += count
                case "re":
                    self.re[key, value] += count
                case "token":
                    self.tokens[value] += count
                case "key":
                    self.std_keys[key] += count
                case _:
                    self.products += count


def report(counts: Counts, keys: Sequence[str], vocabulary: ReVocabulary, previous: ReVocabulary) -> dict[str, Any]:
    """JSON report of a run that grew `previous` to `vocabulary`; rates are of products or of (product, token) pairs."""
    grown = vocabulary.tokens[len(previous.tokens) :]
    dead = [token for token in previous.tokens if token not in counts.tokens]
    outside = [token for token in counts.tokens if vocabulary.token_id(token) == UNKNOWN_ID]
    return {
        "products": counts.products,
        "std": {key: _std(counts, key) for key in keys},
        "re": _re(counts.re, keys, vocabulary),
        "tokens": len(vocabulary.tokens),
        "new_tokens": {"count": len(grown), "first": grown[:LISTED]},
        "dead_tokens": {"count": len(dead), "first": dead[:LISTED], "share": _rate(len(dead), len(previous.tokens))},
        "rare_tokens": {"count": len(outside), "most_frequent": _most(outside, counts.tokens)},
    }


def check(report: Mapping[str, Any], *, max_unknown: float | None, max_dead: float | None) -> None:
    """Raise DriftError when a rate of the report is above its limit; None is no limit."""
    key, worst = max(((key, rates["unknown"]) for key, rates in report["std"].items()), key=lambda pair: pair[1])
    if max_unknown is not None and worst > max_unknown:
        raise DriftError(
            f"vocabulary drift: {worst:.2%} of the products with a {key} have one that the vocabulary lacks, more than "
            f"vocab.max_unknown {max_unknown:.2%}: add aliases for the `unmapped` values in enriched's manifest or "
            "raise the limit; no vocabulary was published"
        )
    dead = report["dead_tokens"]
    if max_dead is not None and dead["share"] > max_dead:
        raise DriftError(
            f"vocabulary drift: {dead['share']:.2%} of the earlier RE tokens ({dead['count']}, as {dead['first'][:3]}) "
            f"occur in no product, more than vocab.max_dead {max_dead:.2%}: check that the catalogue is whole or raise "
            "the limit; no vocabulary was published"
        )


def _std(counts: Counts, key: str) -> dict[str, float]:
    """Share of products with a value, and of those the share whose value is unknown."""
    carrying = counts.std_keys[key]
    return {"coverage": _rate(carrying, counts.products), "unknown": _rate(counts.std[key, UNKNOWN], carrying)}


def _re(pairs: Mapping[tuple[str, str], int], keys: Sequence[str], vocabulary: ReVocabulary) -> dict[str, Any]:
    total, unknown = Counter[str](), Counter[str]()
    for (key, token), count in pairs.items():
        total[key] += count
        unknown[key] += count * (vocabulary.token_id(token) == UNKNOWN_ID)
    return {key: {"pairs": total[key], "unknown": _rate(unknown[key], total[key])} for key in keys}


def _most(tokens: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    return sorted(tokens, key=lambda token: (-counts[token], token))[:LISTED]


def _rate(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
