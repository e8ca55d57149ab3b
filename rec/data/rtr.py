"""Rent the Runway's reviewed rentals: UCSD's official file, or its compact parquet cut.

    official   renttherunway_final_data.json.gz   one JSON object a line
    cut        rtr_interactions.parquet           numbers in their units; cups d, d+ and dd are all d

A row is a rental and all that is known of product and user. Products have no title but their category's word and share
it with thousands of others: the item tower sees the same of these, so they are one content group whatever `group_id`
says (`rec.vocab.groups`), and none is given.

A profile holds the first known value in time order of each column, which is known before every later event. In the
published data these are the same in all rentals of a user. The size that was rented is none of them: it is said of one
garment, and two users of three have one rental, whose size would be in the profile that is to foretell it. It stays
with the event, and so does how it fitted.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rec.config import Source
from rec.data import parse
from rec.data.clean import Raw
from rec.data.files import first, read, read_lines
from rec.dataset import Rejects
from rec.errors import InputError

OFFICIAL, CUT = "renttherunway_final_data.json.gz", "rtr_interactions.parquet"
_SAME = {
    "user_id": "user_id",
    "product_id": "item_id",
    "at": "review_date",
    "value": "rating",
    "category": "category",
    "age": "age",
    "size": "size",
    "fit": "fit",
}
_OFFICIAL = {
    **_SAME, "context": "rented for", "body_type": "body type", "height": "height", "weight": "weight",
    "bust": "bust size",
}  # fmt: skip
_CUT = {
    **_SAME, "context": "rented_for", "body_type": "body_type", "height": "height_in", "weight": "weight_lbs",
    "bust": "bust_size_num", "cup": "bust_size_letter",
}  # fmt: skip
_EVENT = ("user_id", "product_id", "at", "value", "context", "size", "fit")
_PROFILE = ("height", "weight", "age", "bust", "body_type")
CUPS = {
    "aa": 0, "a": 1, "b": 2, "c": 3, "d": 4, "d+": 5, "dd": 6,
    "e": 7, "dd/e": 7, "ddd": 7, "ddd/e": 7, "f": 8, "g": 9, "h": 10, "i": 11, "j": 12,
}  # fmt: skip
"""Cup → its place, ascending, the numeric profile column `cup`; ddd and e are two names of one."""
BODY_TYPES = ("apple", "athletic", "full bust", "hourglass", "pear", "petite", "straight & narrow")
"""Each is a numeric profile column of 0 and 1, `body_apple` … `body_straight_narrow`."""
_BUST = re.compile(r"(\d+)\s*(.*)")


def find(folder: Path) -> Path:
    """The official file in `folder`, or else the cut."""
    for name in (OFFICIAL, CUT):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} holds neither {OFFICIAL} nor {CUT}: set source.folder to the folder of one of them")


def products(file: Path, source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw products, one per item, by first appearance; the category is the most frequent, of ties the first by name."""
    rentals = _rentals(file, Rejects())  # `events` tells what cannot be read
    rows: dict[str, int] = {}
    categories: dict[str, Counter[str]] = {}
    ids, words = rentals.table.column("product_id").to_pylist(), rentals.table.column("category").to_pylist()
    for row, (item, word) in enumerate(zip(ids, words, strict=True)):
        if item is None:
            continue
        rows.setdefault(item, row)
        categories.setdefault(item, Counter()).update([word] if word else [])
    names = [min(count, key=lambda word: (-count[word], word), default=None) for count in categories.values()]
    table = pa.table(
        {
            "product_id": pa.array(rows, pa.string()),
            "title": pa.array([name or item for item, name in zip(rows, names, strict=True)], pa.string()),
            "attributes.category": pa.array([[name] if name else [] for name in names], pa.list_(pa.string())),
        }
    )
    yield from first(iter([Raw(file.name, rentals.positions[list(rows.values())], table)]), source.limit)


def events(file: Path, rejects: Rejects) -> Iterator[Raw]:
    """Raw events, one per rental; exact repetitions are refused."""
    rentals = _rentals(file, rejects)
    kind = pa.array(["rental"] * rentals.table.num_rows, pa.string())
    yield Raw(rentals.source, rentals.positions, rentals.table.select(_EVENT).append_column("event", kind))


def users(file: Path, rejects: Rejects, renters: pa.Array) -> Iterator[Raw]:
    """Raw users among `renters`: the first known value in time order of each profile column."""
    rentals = _rentals(file, Rejects())
    at, _ = parse.time(rentals.table.column("at"))
    chosen = pc.is_in(rentals.table.column("user_id"), renters).to_numpy() & (at > 0)
    frame = rentals.table.filter(pa.array(chosen)).select(["user_id", *_PROFILE]).to_pandas()
    frame["birth_year"] = _birth_years(frame.pop("age"), at[chosen])
    frame["position"] = rentals.positions[chosen]
    order = np.argsort(at[chosen], kind="stable")
    known = frame.iloc[order].groupby("user_id", sort=False).first().reset_index()
    known = known.astype(object).where(known.notna(), None)
    types = [_flags(text) for text in known["body_type"]]
    for row in (
        row for row, (text, flags) in enumerate(zip(known["body_type"], types, strict=True)) if text and not flags
    ):
        text, place = known["body_type"][row], int(known["position"][row])
        reason = f"body type {text!r} is none of {', '.join(BODY_TYPES)}"
        rejects.add(source=file.name, row=place, reason=reason, record={"body type": text}, whole=False)
    busts = [_bust(text) for text in known["bust"]]
    columns: dict[str, list[str | None]] = {
        "user_id": known["user_id"].tolist(),
        "height_cm": known["height"].tolist(),
        "weight_kg": known["weight"].tolist(),
        "birth_year": known["birth_year"].tolist(),
        "numeric.bust_band": [band for band, _ in busts],
        "numeric.cup": [cup for _, cup in busts],
    }
    for name in _flags(BODY_TYPES[0]):
        columns[f"numeric.{name}"] = [flags.get(name) for flags in types]
    made = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    yield Raw(file.name, known["position"].to_numpy(np.int64), made)


def _rentals(file: Path, rejects: Rejects) -> Raw:
    """All rentals, text in the official file's words; of rows alike in every column that is read the first counts."""
    official = file.name == OFFICIAL
    raws = list(read_lines(file, _OFFICIAL, rejects) if official else read(file, _CUT, rejects))
    tables = [_official(raw.table) if official else _cut(raw.table) for raw in raws]
    table = pa.concat_tables([pa.schema([(name, pa.string()) for name in _OFFICIAL]).empty_table(), *tables])
    positions = np.concatenate([np.empty(0, np.int64), *(raw.positions for raw in raws)])
    again = table.to_pandas().duplicated().to_numpy(dtype=bool)
    for position, record in zip(positions[again].tolist(), table.filter(pa.array(again)).to_pylist(), strict=True):
        rejects.add(source=file.name, row=position, reason="the same rental twice", record=record)
    return Raw(file.name, positions[~again], table.filter(pa.array(~again)))


def _official(table: pa.Table) -> pa.Table:
    columns = {name: parse.text(table.column(name)) for name in _OFFICIAL}
    written = columns["at"].to_pandas()
    days = pd.to_datetime(written, format="%B %d, %Y", errors="coerce").dt.strftime("%Y-%m-%d")
    return pa.table(columns | {"at": pa.array(days.where(days.notna(), written), pa.string())})


def _cut(table: pa.Table) -> pa.Table:
    columns = {name: _plain(table.column(name)) for name in _CUT}
    height, weight, cup = columns["height"], columns["weight"], columns.pop("cup")
    day = table.column("at").cast(pa.date32()).cast(pa.string())
    told = pc.binary_join_element_wise(columns["bust"], cup, "", null_handling="replace", null_replacement="")
    return pa.table(
        columns
        | {
            "at": day,
            "height": pc.binary_join_element_wise(height, "in", ""),
            "weight": pc.binary_join_element_wise(weight, "lbs", ""),
            "bust": parse.text(told),
        }
    ).select(list(_OFFICIAL))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text of any column; 34.0 is 34, and not-a-number is null."""
    if not pa.types.is_floating(column.type):
        return parse.text(column)
    values = column.to_pylist()
    said = [None if value is None or value != value else f"{value:g}" for value in values]
    return pa.chunked_array([pa.array(said, pa.string())])


def _birth_years(ages: pd.Series, at: np.ndarray) -> list[str | None]:
    """The review's year less the age; an age that is no number as it is, to be told as a bad year."""
    years = at.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
    values, bad = parse.number(pa.chunked_array([pa.array(ages, pa.string())]))
    return [
        age if wrong else None if value != value else f"{year - value:g}"
        for age, wrong, value, year in zip(ages, bad.tolist(), values.tolist(), years.tolist(), strict=True)
    ]


def _flags(text: str | None) -> dict[str, str]:
    """Profile column → 0 or 1 for a known body type, else nothing."""
    if text not in BODY_TYPES:
        return {}
    return {f"body_{'_'.join(re.findall('[a-z]+', name))}": str(int(name == text)) for name in BODY_TYPES}


def _bust(text: str | None) -> tuple[str | None, str | None]:
    """Band and place of the cup; what is neither is left as it is, to be told as no number."""
    found = _BUST.fullmatch(text or "")
    if found is None:
        return text, None
    cup = found[2].casefold()
    return found[1], str(CUPS[cup]) if cup in CUPS else cup or None
