"""What differs between two bundles: products, vocabulary, features, options, figures and item vectors."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rec.bundle import DISPLAY, Bundle
from rec.features.spec import Spec
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

SHOWN = 10
"""Names of products, values and tokens that are shown; all are counted."""


def diff(one: Bundle, other: Bundle) -> dict[str, Any]:
    """The changes from `one` to `other`; where two values stand side by side, that of `one` comes first.

    `cosine` is the mean over products that both have of the inner product of their unit vectors; None where the widths
    differ or there are none. Towers that were trained from different starts turn the same space differently: then a low
    one says nothing of their quality.
    """
    return {
        "bundles": [one.id, other.id],
        "recipes": [one.recipe, other.recipe],
        "products": _products(one, other),
        "vocabulary": {
            "std": _sets(_std(one), _std(other)),
            "re": _sets(_re(one), _re(other)),
        },
        "features": _features(one, other),
        "config": _changed(_config(one), _config(other)),
        "metrics": _side_by_side(_metrics(one), _metrics(other)),
        "cosine": _cosine(one, other),
    }


def _products(one: Bundle, other: Bundle) -> dict[str, Any]:
    ids = [one.product_ids(), other.product_ids()]
    here, there = _rows_of_both(ids)
    left, right = one.products(), other.products()
    columns: dict[str, int] = {}
    changed: set[int] = set()
    for name in DISPLAY.names:
        before, after = _values(left[name].take(here)), _values(right[name].take(there))
        unlike = [row for row, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if unlike:
            columns[name] = len(unlike)
            changed.update(unlike)
    return {
        **_sets(ids[0], ids[1]),
        "changed": len(changed),
        "changed_columns": columns,
        "changed_first": [ids[0][here[row]] for row in sorted(changed)[:SHOWN]],
    }


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; of attributes key and value alone, as bundles of before do not say where they come from."""
    values: list[Any] = column.to_pylist()
    if column.type in (DISPLAY.field("std").type, DISPLAY.field("re").type):
        return [[(each["key"], each["value"]) for each in attributes] for attributes in values]
    return values


def _rows_of_both(ids: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """Item rows, in the one bundle and in the other, of the products that both have."""
    there = {name: row for row, name in enumerate(ids[1])}
    pairs = [(row, there[name]) for row, name in enumerate(ids[0]) if name in there]
    return [row for row, _ in pairs], [row for _, row in pairs]


def _sets(before: Collection[str], after: Collection[str]) -> dict[str, Any]:
    """What came and what went, counted, and the first of each."""
    added, removed = sorted(set(after) - set(before)), sorted(set(before) - set(after))
    return {
        "added": len(added),
        "removed": len(removed),
        "added_first": added[:SHOWN],
        "removed_first": removed[:SHOWN],
    }


def _std(made: Bundle) -> list[str]:
    """Every value of the closed vocabulary, as `key=value`."""
    vocabulary = StdVocabulary.load(made.folder("vocabulary") / "std.toml")
    return [f"{key}={value}" for key in vocabulary.keys for value in vocabulary.values(key)]


def _re(made: Bundle) -> list[str]:
    return ReVocabulary.load(made.folder("vocabulary") / "re.json").tokens


def _features(one: Bundle, other: Bundle) -> dict[str, Any]:
    specs = [_spec(made) for made in (one, other)]
    fields = [
        [*(field.name for field in spec.sparse), *(field.name for field in spec.varlen), *spec.dense] for spec in specs
    ]
    return {"tables": _changed(specs[0].tables, specs[1].tables), "fields": _sets(fields[0], fields[1])}


def _spec(made: Bundle) -> Spec:
    return Spec.from_json(_json(made, "ranker/ranker.json")["spec"])


def _config(made: Bundle) -> dict[str, Any]:
    return dict(_flat(_json(made, "config.json")))


def _metrics(made: Bundle) -> dict[str, float]:
    """Every figure over all users, by `system.metric`."""
    figures = _json(made, "metrics.json")["slices"]["all"]["figures"]
    return {f"{system}.{name}": figure["value"] for system, of in figures.items() for name, figure in of.items()}


def _json(made: Bundle, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((made.path / name).read_text(encoding="utf-8"))
    return value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested mappings by dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found


def _side_by_side(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [before.get(name), after.get(name)] for name in sorted({*before, *after})}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: pair for name, pair in _side_by_side(before, after).items() if pair[0] != pair[1]}


def _cosine(one: Bundle, other: Bundle) -> float | None:
    here, there = _rows_of_both([one.product_ids(), other.product_ids()])
    if one.width != other.width or not here:
        return None
    return float(np.mean(np.sum(one.item_vectors()[here] * other.item_vectors()[there], axis=1)))
