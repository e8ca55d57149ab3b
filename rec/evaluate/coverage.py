"""STD coverage: which share of the attribute values that shops give the vocabulary knows, and which it does not.

Counted on the AI Hub garments (compact cut, 27,311 garments under 14 attributes): each part of a comma-joined value
is one value, as often as garments carry it. A value that maps to its key's `unknown` counts as not mapped.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rec.vocab.std import UNKNOWN, StdVocabulary

FILE = "aihub_std_re_dotblossom.parquet"
GOAL = 0.995


@dataclass(slots=True)
class KeyCoverage:
    """Given values of one key, each as often as products carry it."""

    mapped: int = 0
    unmapped: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """Share of values that are mapped; 1 where none is given."""
        whole = self.mapped + self.unmapped.total()
        return self.mapped / whole if whole else 1.0


def measure(table: pa.Table, vocabulary: StdVocabulary) -> dict[str, KeyCoverage]:
    """Coverage by key of the columns of `table` that name one; other columns are no attributes."""
    found: dict[str, KeyCoverage] = {}
    for column in table.column_names:
        key = vocabulary.key_of(column)
        if key is None:
            continue
        coverage = found.setdefault(key, KeyCoverage())
        for raw, count in Counter(table.column(column).drop_null().to_pylist()).items():
            normal = vocabulary.normalise(key, raw)
            coverage.mapped += count * sum(value != UNKNOWN for value in normal.values)
            unmapped = normal.unmapped + ([raw] if UNKNOWN in normal.values else [])
            coverage.unmapped.update(dict.fromkeys(unmapped, count))
    return found


def figures(found: dict[str, KeyCoverage]) -> dict[str, dict[str, Any]]:
    """`std.coverage` over all values and `std.coverage.KEY`, without an interval: the whole file is counted."""
    whole = KeyCoverage()
    for coverage in found.values():
        whole.mapped += coverage.mapped
        whole.unmapped.update(coverage.unmapped)
    shares = {"std.coverage": whole.share, **{f"std.coverage.{key}": c.share for key, c in sorted(found.items())}}
    return {
        name: {"value": round(share, 6), "ci95": None, "goal": GOAL, "unit": "coverage"}
        for name, share in shares.items()
    }


def unmapped(found: dict[str, KeyCoverage]) -> list[dict[str, Any]]:
    """Every value that is not mapped, the most frequent first."""
    rows = [{"key": key, "value": value, "count": n} for key, c in found.items() for value, n in c.unmapped.items()]
    return sorted(rows, key=lambda row: (-row["count"], row["key"], row["value"]))


def read(folder: Path) -> pa.Table | None:
    """The file to count in `folder`, None where it does not lie."""
    path = folder / FILE
    return pq.read_table(path) if path.is_file() else None
