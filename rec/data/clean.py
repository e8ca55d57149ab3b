"""Raw columns to rows of the contracts; rows that break a rule are kept apart with the reason.

A raw table has the contract's column names; maps come as one column per key: `attributes.colour`,
`measurements.inseam`, `numeric.shoe_size`. Checks run on whole columns; the first broken rule of a
row is its reason. A profile value, a size or a fit that cannot be is left out alone, with a reason of its own: the
rest of the user or event stays.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec import sizes
from rec.data import body, parse, repeated
from rec.dataset import Rejects
from rec.errors import InputError
from rec.schema import EVENTS, INTERACTIONS, PRODUCTS, USERS

_ENCODED = pa.dictionary(pa.int32(), pa.string())
EVENT_TABLE = pa.schema(
    [
        pa.field("user_id", _ENCODED), pa.field("product_id", _ENCODED), pa.field("event", _ENCODED),
        INTERACTIONS.schema.field("at"), INTERACTIONS.schema.field("value"), pa.field("context", _ENCODED),
        pa.field("size", _ENCODED), INTERACTIONS.schema.field("size_number"), pa.field("fit", _ENCODED),
    ]
)  # fmt: skip
"""Clean events: the contract with repeated strings encoded, a tenth of the memory."""

CLOCK_SKEW = timedelta(days=1)
"""How far in the future an event may lie: clocks differ, and so do the zones of times that name none."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Some rows of a source, in its order."""

    source: str
    """File name, for messages."""
    positions: np.ndarray
    """int64[rows], 0-based positions in the source."""
    table: pa.Table


class _Check:
    """Collects the first broken rule of each row of one raw table, and single values that are left out."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.good = np.ones(raw.table.num_rows, dtype=bool)
        self.reasons: dict[int, str] = {}
        self.left_out: list[tuple[int, str]] = []

    def refuse(self, bad: np.ndarray, reason: str, column: str | None = None) -> None:
        """Refuse rows where `bad`; `{}` in the reason becomes the row's value of `column`."""
        fresh = np.flatnonzero(bad & self.good)
        if not len(fresh):
            return
        self.good &= ~bad
        self.reasons |= self._said(fresh, reason, column)

    def leave_out(self, bad: np.ndarray, reason: str, column: str) -> None:
        """Say that the values of `column` where `bad` are not used; their rows stay."""
        rows = np.flatnonzero(bad)
        self.left_out += self._said(rows, reason, column).items() if len(rows) else ()

    def _said(self, rows: np.ndarray, reason: str, column: str | None) -> dict[int, str]:
        values = self.raw.table.column(column).take(pa.array(rows)).to_pylist() if column else [None] * len(rows)
        return {row: reason.replace("{}", repr(value)[:80]) for row, value in zip(rows.tolist(), values, strict=True)}

    def kept(self, rejects: Rejects) -> np.ndarray:
        """Positions int64 of the good rows; the others, and the values left out of good ones, go to `rejects`."""
        refused = np.flatnonzero(~self.good)
        said = [(row, self.reasons[row], True) for row in refused.tolist()]
        said += [(row, reason, False) for row, reason in self.left_out if self.good[row]]
        records = self.raw.table.take(pa.array([row for row, _, _ in said], pa.int64())).to_pylist()
        for (row, reason, whole), record in zip(said, records, strict=True):
            present = {name: value for name, value in record.items() if value is not None}
            position = int(self.raw.positions[row])
            rejects.add(source=self.raw.source, row=position, reason=reason, record=present, whole=whole)
        return np.flatnonzero(self.good)

    def required(self, name: str) -> pa.ChunkedArray:
        """A text column that must not be blank. An id without its NUL characters would be another id: refused."""
        values = parse.text(self.raw.table.column(name))
        self.refuse(parse.has_nul(self.raw.table.column(name)), f"{name} {{}} holds a NUL character", name)
        self.refuse(values.is_null().to_numpy(), f"{name} is empty")
        return values

    def optional(self, name: str) -> pa.ChunkedArray:
        """A text column, null throughout when absent."""
        if name not in self.raw.table.column_names:
            return pa.chunked_array([pa.nulls(self.raw.table.num_rows, pa.string())])
        return parse.text(self.raw.table.column(name))

    def number(self, name: str, *, low: float | None = None, what: str = "a number") -> np.ndarray:
        """float64[n] with NaN for missing; refuses what is no number or below `low`."""
        if name not in self.raw.table.column_names:
            return np.full(self.raw.table.num_rows, np.nan)
        values, bad = parse.number(self.raw.table.column(name))
        if low is not None:
            bad = bad | (values < low)
        self.refuse(bad, f"{name} {{}} is not {what}", name)
        return values

    def time(self, name: str, *, required: bool) -> pa.Array:
        """timestamp[us, UTC][n]; refuses what is no time."""
        if name not in self.raw.table.column_names:
            return pa.nulls(self.raw.table.num_rows, pa.timestamp("us", tz="UTC"))
        micros, bad = parse.time(self.raw.table.column(name))
        self.refuse(bad, f"{name} {{}} is neither ISO 8601 nor epoch seconds within 1990 to 2100", name)
        if required:
            self.refuse(micros == 0, f"{name} is empty")
        return pa.array(micros, mask=micros == 0).cast(pa.timestamp("us", tz="UTC"))

    def body(self, name: str, year: int) -> body.Column:
        """A body column; leaves out what no person has."""
        if name not in self.raw.table.column_names:
            absent = np.zeros(self.raw.table.num_rows, dtype=bool)
            return body.Column(name, np.full(len(absent), np.nan), absent, absent, "")
        found = body.read(name, self.raw.table.column(name), year)
        self.leave_out(found.bad, found.reason, name)
        return found

    def size(self) -> tuple[pa.ChunkedArray, pa.Array]:
        """The text column `size` and its numeric reading float32; leaves out what is too long."""
        texts = self.optional("size")
        long = pc.greater(pc.utf8_length(texts), sizes.MAX_SIZE_CHARS).fill_null(False).to_numpy()
        self.leave_out(long, f"size {{}} has more than {sizes.MAX_SIZE_CHARS} characters", "size")
        texts = pc.if_else(pa.array(~long), texts, None)
        encoded = pc.dictionary_encode(texts).combine_chunks()
        numbers = pa.array([sizes.number(text) for text in encoded.dictionary.to_pylist()], pa.float32())
        return texts, numbers.take(encoded.indices)

    def fit(self) -> pa.ChunkedArray:
        """The text column `fit`; leaves out what is none of FITS."""
        texts = pc.utf8_lower(self.optional("fit"))
        bad = pc.invert(pc.is_in(texts, pa.array(sizes.FITS))).to_numpy() & texts.is_valid().to_numpy()
        self.leave_out(bad, f"fit {{}} is none of {', '.join(sizes.FITS)}", "fit")
        return pc.if_else(pa.array(~bad), texts, None)

    def measurements(self) -> list[list[tuple[str, float]]]:
        """Map entries of the columns `measurements.key`; refuses what is no length."""
        names = _keyed(self.raw.table, "measurements")
        return self._entries({name: self.number(name, low=0, what="a length in cm") for name in names})

    def numeric(self) -> list[list[tuple[str, float]]]:
        """Map entries of the columns `numeric.key`; leaves out what is no number."""
        columns = {}
        for name in _keyed(self.raw.table, "numeric"):
            values, bad = parse.number(self.raw.table.column(name))
            self.leave_out(bad, f"{name} {{}} is no number: give a number without a unit", name)
            columns[name] = np.where(bad, np.nan, values)
        return self._entries(columns)

    def _entries(self, columns: dict[str, np.ndarray]) -> list[list[tuple[str, float]]]:
        """Per row (key, value) of columns `prefix.key`; a missing number is no entry."""
        entries: list[list[tuple[str, float]]] = [[] for _ in range(self.raw.table.num_rows)]
        for name, values in columns.items():
            for row in np.flatnonzero(~np.isnan(values)).tolist():
                entries[row].append((name.partition(".")[2], float(values[row])))
        return entries


def _keyed(table: pa.Table, prefix: str) -> list[str]:
    return sorted(name for name in table.column_names if name.startswith(f"{prefix}."))


def products(raws: Iterable[Raw], rejects: Rejects, *, currency: str) -> pa.Table:
    """All good products, sorted by product_id; of a repeated id the first row counts."""
    met: set[str] = set()
    tables = [_products(raw, rejects, currency, met) for raw in raws]
    table = _whole(tables, PRODUCTS.schema, rejects, "products")
    return table.take(pc.sort_indices(table.column("product_id")))


def _products(raw: Raw, rejects: Rejects, currency: str, met: set[str]) -> pa.Table:
    check = _Check(raw)
    count = raw.table.num_rows
    ids, title = check.required("product_id"), check.required("title")
    price = check.number("price", low=0, what="a price")
    money = pc.utf8_upper(check.optional("currency")).fill_null(currency)
    check.refuse(~pc.match_substring_regex(money, "^[A-Z]{3}$").to_numpy(), "currency is not an ISO 4217 code")
    measurements = check.measurements()
    available = np.ones(count, dtype=bool)
    if "available" in raw.table.column_names:
        available, bad = parse.flag(raw.table.column("available"), missing=True)
        check.refuse(bad, "available {} is neither yes nor no", "available")
    created_at = check.time("created_at", required=False)
    attributes: list[list[tuple[str, list[str]]]] = [[] for _ in range(count)]
    for name in _keyed(raw.table, "attributes"):
        for row, values in enumerate(parse.lists(raw.table.column(name))):
            if values:
                attributes[row].append((name.removeprefix("attributes."), values))
    has_images = "image_urls" in raw.table.column_names
    images = parse.lists(raw.table.column("image_urls"), urls=True) if has_images else [[] for _ in range(count)]
    _refuse_repeated(check, ids, met)
    kept = check.kept(rejects)
    schema = PRODUCTS.schema
    columns = {
        "product_id": ids, "title": title, "description": check.optional("description"),
        "html": check.optional("html"), "image_urls": pa.array(images, schema.field("image_urls").type),
        "attributes": pa.array(attributes, schema.field("attributes").type),
        "measurements": pa.array(measurements, schema.field("measurements").type),
        "price": pa.array(price, pa.float32(), mask=np.isnan(price)), "currency": money,
        "brand": check.optional("brand"), "group_id": check.optional("group_id"),
        "available": pa.array(available), "created_at": created_at,
    }  # fmt: skip
    return _take(columns, kept).cast(schema)


def users(raws: Iterable[Raw], rejects: Rejects, *, in_events: pa.Array, year: int) -> pa.Table:
    """All good users and, with an empty profile, those that only events name; sorted by user_id.

    `year` is the present one: nobody is born after it. Heights or weights that are in another unit as a whole are an
    InputError.
    """
    met: set[str] = set()
    units = body.Units()
    tables = [_users(raw, rejects, met, year, units) for raw in raws]
    units.check()
    table = pa.concat_tables([USERS.schema.empty_table(), *tables])
    unknown = in_events.filter(pc.invert(pc.is_in(in_events, table.column("user_id").combine_chunks())))
    profile = {field.name: pa.nulls(len(unknown), field.type) for field in USERS.schema if field.name != "user_id"}
    added = pa.table({"user_id": unknown, **profile}, schema=USERS.schema)
    table = pa.concat_tables([table, added])
    return table.take(pc.sort_indices(table.column("user_id")))


def _users(raw: Raw, rejects: Rejects, met: set[str], year: int, units: body.Units) -> pa.Table:
    check = _Check(raw)
    ids = check.required("user_id")
    height, weight, born = (check.body(name, year) for name in ("height_cm", "weight_kg", "birth_year"))
    numeric = check.numeric()
    _refuse_repeated(check, ids, met)
    kept = check.kept(rejects)
    for column in (height, weight):
        units.add(column, kept)
    columns = {
        "user_id": ids, "height_cm": pa.array(height.values, pa.float32(), mask=np.isnan(height.values)),
        "weight_kg": pa.array(weight.values, pa.float32(), mask=np.isnan(weight.values)),
        "birth_year": pa.array(np.nan_to_num(born.values).astype(np.int32), mask=np.isnan(born.values)),
        "numeric": pa.array(numeric, USERS.schema.field("numeric").type),
    }  # fmt: skip
    return _take(columns, kept).cast(USERS.schema)


@dataclass(frozen=True, slots=True)
class Events:
    """Clean events, and how many there were of those that are not among them without being wrong."""

    table: pa.Table
    """Under EVENT_TABLE, sorted by (user_id, at) with ties in the source's order."""
    left_out: int
    """On products that were cut off on purpose."""
    in_log: int
    """Live events that the source has as well."""


def events(
    raws: Iterable[Raw],
    rejects: Rejects,
    *,
    product_ids: pa.Array,
    kind: str,
    cut: bool,
    now: datetime,
    live: Raw | None = None,
) -> Events:
    """All good events of a source, and those of `live` that it does not have.

    `kind` is the event of rows that name none. Events on products outside `product_ids` are refused,
    or, where the products were cut short on purpose (`cut`), left out.
    Events later than `now` by more than CLOCK_SKEW are refused, and so is the same event told again.
    """
    latest = int((now + CLOCK_SKEW).timestamp()) * 1_000_000
    tables, sources, positions, left_out, logged = [], [], [np.empty(0, np.int64)], 0, 0
    for raw in itertools.chain(raws, [live] if live is not None and live.table.num_rows else []):
        table, kept, absent = _events(raw, rejects, product_ids, kind, cut, latest)
        tables.append(table)
        sources.append(raw.source)
        positions.append(raw.positions[kept])
        left_out += absent
        logged += table.num_rows * (raw is not live)
    ends = np.cumsum([table.num_rows for table in tables])
    table = _whole(tables, EVENT_TABLE, rejects, "events").unify_dictionaries().combine_chunks()
    user = table.column("user_id").combine_chunks()
    held = repeated.in_log(table, logged) if live is not None else np.empty(0, np.int64)
    names = user.dictionary.to_numpy(zero_copy_only=False)
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.argsort(names, kind="stable")] = np.arange(len(names))
    at = table.column("at").cast(pa.int64()).to_numpy()
    order = np.lexsort((at, rank[user.indices.to_numpy()]))  # stable, last key first
    order = order[~np.isin(order, held)]
    table = table.take(pa.array(order))
    again = repeated.told_again(table)
    place = np.concatenate(positions)
    for row, record in zip(order[again].tolist(), table.take(pa.array(again)).to_pylist(), strict=True):
        source = sources[int(np.searchsorted(ends, row, side="right"))]
        rejects.add(source=source, row=int(place[row]), reason="the same event twice", record=record)
    if len(again):
        table = table.take(pa.array(np.delete(np.arange(len(order)), again)))
    return Events(table, left_out, len(held))


def _events(
    raw: Raw, rejects: Rejects, product_ids: pa.Array, kind: str, cut: bool, latest: int
) -> tuple[pa.Table, np.ndarray, int]:
    """Good events of `raw`, their rows int64 in it, and how many were left out; `latest` in UTC microseconds."""
    check = _Check(raw)
    user, product = check.required("user_id"), check.required("product_id")
    event = pc.utf8_lower(check.optional("event")).fill_null(kind)
    if "event" in raw.table.column_names:
        known = pc.is_in(event, pa.array(EVENTS)).to_numpy()
        check.refuse(~known, f"event {{}} is none of {', '.join(EVENTS)}", "event")
    at = check.time("at", required=True)
    late = at.cast(pa.int64()).fill_null(0).to_numpy() > latest
    check.refuse(late, "at {} lies in the future: check its unit and its time zone", "at")
    value = check.number("value")
    size, size_number = check.size()
    fit = check.fit()
    absent = pc.invert(pc.is_in(product, product_ids)).to_numpy() & product.is_valid().to_numpy()
    if not cut:
        check.refuse(absent, "product_id {} is not in the catalogue", "product_id")
    kept = check.kept(rejects)
    outside = int(absent[kept].sum()) if cut else 0
    columns = {
        "user_id": user, "product_id": product, "event": event, "at": at,
        "value": pa.array(value, pa.float32(), mask=np.isnan(value)), "context": check.optional("context"),
        "size": size, "size_number": size_number, "fit": fit,
    }  # fmt: skip
    used = kept[~absent[kept]] if cut else kept
    table = _take(columns, used)
    encoded = {name: table.column(name) for name in EVENT_TABLE.names}
    for name in ("user_id", "product_id", "event", "context", "size", "fit"):
        encoded[name] = pc.dictionary_encode(encoded[name])
    return pa.table(encoded, schema=EVENT_TABLE), used, outside


def event_batches(table: pa.Table, rows: int = 65_536) -> Iterator[pa.Table]:
    """Slices of clean events with plain strings, as the contract has them."""
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows).cast(INTERACTIONS.schema)


def _refuse_repeated(check: _Check, ids: pa.ChunkedArray, met: set[str]) -> None:
    """Refuse ids that a good row had before; call it after every other rule."""
    repeated = np.zeros(len(ids), dtype=bool)
    for row, value in enumerate(ids.to_pylist()):
        if not check.good[row]:
            continue
        repeated[row] = value in met
        met.add(value)
    name = "product_id" if "product_id" in check.raw.table.column_names else "user_id"
    check.refuse(repeated, f"{name} {{}} occurs twice", name)


def _take(columns: dict[str, pa.Array | pa.ChunkedArray], kept: np.ndarray) -> pa.Table:
    return pa.table(columns).take(pa.array(kept))


def _whole(tables: list[pa.Table], schema: pa.Schema, rejects: Rejects, what: str) -> pa.Table:
    """The tables as one; nothing at all is an error that says why."""
    table = pa.concat_tables([schema.empty_table(), *tables])
    if not table.num_rows:
        why = f"all {len(rejects)} rows are refused, the first: {rejects.first_reason}" if rejects else "no rows"
        raise InputError(f"there are no {what} to use ({why}): check the file and source.columns.{what}")
    return table
