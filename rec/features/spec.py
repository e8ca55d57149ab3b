"""Every field of the ranker, by name. Training, evaluation, serving and the exported model share one Spec.

Three kinds of fields:
    sparse   one id per candidate, looked up in a table
    varlen   up to `length` ids per candidate, 0-padded, looked up and averaged
    dense    one number per candidate

STD fields share one table because the vocabulary gives all keys one id space, and so do the RE fields;
the fields of the user (`user_*`) look up the same rows as those of the item, so the model's dot products
compare like with like.

The field `source` is the bit set of the sources that found the candidate: one row for each combination.

Stock is no field: it is a filter of retrieval, and a shop records only today's stock, so a training sample
could not see the value of its own time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rec.retrieval import SOURCES

USER_KEYS = ("category", "gender", "colour", "pattern", "fit", "style", "vibe", "occasion")
"""STD keys whose most frequent value in the history is a field of the user."""

_USER = ("history_length", "history_recency", "history_last_age", "history_bought")
_ITEM = ("log_price", "price_missing", "log_age", "age_missing", "log_popularity")
_CROSS = (
    "score", "score_gap", "log_rank", "cooccurrence", "seen", "seen_count", "same_group", "same_brand", "price_gap",
    "price_distance", "cosine_max", "cosine_mean", "cosine_last", "re_match", "re_match_max",
)  # fmt: skip


GROUPS = (
    "profile", "activity", "habits", "attributes", "re", "brand", "product", "retrieval", "seen", "shares",
    "similarity", "garment",
)  # fmt: skip
"""What the fields are about, for `group_of`."""
_GROUPS = {
    "brand": ("item_brand", "user_brand", "same_brand"),
    "re": ("item_re", "re_match", "re_match_max"),
    "product": (*_ITEM, "price_gap", "price_distance"),
    "retrieval": ("source", "score", "score_gap", "log_rank", "cooccurrence"),
    "seen": ("seen", "seen_count", "same_group"),
    "activity": _USER,
}
_PREFIXES = {
    "profile_": "profile", "cosine_": "similarity", "share_": "shares", "last_": "shares", "user_": "habits",
    "item_": "attributes", "measure_": "garment", "habit_": "garment",
}  # fmt: skip


def group_of(field: str) -> str:
    """The one of GROUPS that a field belongs to."""
    for group, names in _GROUPS.items():
        if field in names:
            return group
    for prefix, group in _PREFIXES.items():
        if field.startswith(prefix):
            return group
    return "garment"  # a profile value beside a measurement


@dataclass(frozen=True, slots=True)
class SparseField:
    """One id per candidate."""

    name: str
    table: str


@dataclass(frozen=True, slots=True)
class VarlenField:
    """`length` ids per candidate, 0-padded on the right."""

    name: str
    table: str
    length: int


@dataclass(frozen=True, slots=True)
class Spec:
    """The fields in column order and the number of rows of each table."""

    tables: dict[str, int]
    sparse: tuple[SparseField, ...]
    varlen: tuple[VarlenField, ...]
    dense: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON value that `from_json` turns back into an equal Spec; tables keep their order, which is that of ids."""
        return asdict(self) | {"tables": list(self.tables.items())}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Spec":
        """The Spec that `to_json` described."""
        return cls(
            tables={name: int(rows) for name, rows in value["tables"]},
            sparse=tuple(SparseField(**field) for field in value["sparse"]),
            varlen=tuple(VarlenField(**field) for field in value["varlen"]),
            dense=tuple(value["dense"]),
        )

    @property
    def names(self) -> list[str]:
        """All fields: sparse, varlen, dense."""
        return [*(field.name for field in self.sparse), *(field.name for field in self.varlen), *self.dense]

    def difference(self, other: "Spec") -> str:
        """The first thing that `other` has otherwise, in words; empty when the two are equal."""
        names = [self.names, other.names]
        for here, there, what in ((*names, "only the first has"), (*names[::-1], "only the second has")):
            if more := sorted(set(here) - set(there)):
                return f"{what} the fields {', '.join(more[:5])}{' and others' if len(more) > 5 else ''}"
        for name in self.tables.keys() | other.tables.keys():
            rows = self.tables.get(name), other.tables.get(name)
            if rows[0] != rows[1]:
                return f"table {name!r} has {rows[0]} rows in the first and {rows[1]} in the second"
        return "" if self == other else "the same fields are in another order or look up other tables"


def build(
    *,
    std_keys: Sequence[str],
    std_rows: int,
    re_rows: int,
    brand_rows: int,
    re_length: int,
    profile: Sequence[str],
    measurements: Sequence[str],
) -> Spec:
    """The Spec of a catalogue with these STD keys, table sizes, profile columns and garment measurements."""
    sparse = [SparseField(f"item_{key}", "std") for key in std_keys]
    sparse += [SparseField(f"user_{key}", "std") for key in user_keys(std_keys)]
    sparse += [SparseField("item_brand", "brand"), SparseField("user_brand", "brand"), SparseField("source", "source")]
    dense = [f"profile_{name}" for name in profile] + [f"profile_{name}_missing" for name in profile]
    dense += [*_USER, *_ITEM, *_CROSS]
    dense += [f"share_{key}" for key in std_keys] + [f"last_{key}" for key in std_keys]
    for measurement in measurements:
        dense += [f"measure_{measurement}", f"measure_{measurement}_missing", f"habit_{measurement}_distance"]
        for name in profile:
            dense += [f"{name}_to_{measurement}", f"{name}_to_{measurement}_distance"]
    return Spec(
        tables={"std": std_rows, "re": re_rows, "brand": brand_rows, "source": 2 ** len(SOURCES)},
        sparse=tuple(sparse),
        varlen=(VarlenField("item_re", "re", re_length),),
        dense=tuple(dense),
    )


def user_keys(std_keys: Sequence[str]) -> list[str]:
    """The USER_KEYS that the vocabulary has."""
    return [key for key in USER_KEYS if key in std_keys]
