"""Stage `ingest`: a source becomes the datasets products, users and events.

Products are sorted by product_id, users by user_id, events by (user_id, at) with ties in the source's
order; with `source.live_events` what servers were told is among them. Users who were forgotten are left out, and taken
out of the datasets of later stages. Refused rows, and profile values, sizes and fits left out of rows that stay, are
kept beside each dataset with the reason. Events in the future are refused by the clock of the run that reads them.
Memory holds the products and, with repeated strings encoded, the events: about 40 bytes an event.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rec import artifact, dataset, log
from rec.config import Config, Source
from rec.data import aihub, amazon, clean, files, forgotten, hm, live, rtr, sample
from rec.data.clean import Raw
from rec.dataset import Rejects
from rec.index.forget import Gone
from rec.schema import INTERACTIONS, PRODUCTS, USERS, Contract

logger = logging.getLogger(__name__)

RULES = 2
"""Rises when the same files give other rows, so that datasets made by earlier rules are made again."""

_CONTRACTS: dict[str, Contract] = {"products": PRODUCTS, "users": USERS, "events": INTERACTIONS}


@dataclass(frozen=True, slots=True)
class Reader:
    """A source opened: its identity and its raw rows."""

    inputs: Callable[[], dict[str, str]]
    """Reads all files for their content hashes, by what they hold."""
    config: dict[str, Any]
    """What of the configuration determines the rows."""
    products: Callable[[Rejects], Iterator[Raw]]
    events: Callable[[Rejects], Iterator[Raw]] | None
    """None for a source that has no events."""
    users: Callable[[Rejects, pa.Array], Iterator[Raw]]
    """Takes the distinct user ids of the events as well."""


def run(config: Config) -> dict[str, Any]:
    """Write products, users and events; does nothing when they were made from the same input already."""
    started = time.perf_counter()
    reader = open_source(config.source, config.seed)
    gone = forgotten.read(config)  # before the live events, which then have none of them
    told = live.read(config) if config.source.live_events else None
    inputs = reader.inputs()
    inputs |= {} if told is None else {"live_events": told.content_hash}
    inputs |= {"forgotten": gone.content_hash} if gone else {}
    identity: dict[str, dict[str, Any]] = {"inputs": inputs, "config": reader.config | {"rules": RULES}}
    manifests = {
        name: artifact.finished(config.at(name), kind=contract.kind, version=contract.version, **identity)
        for name, contract in _CONTRACTS.items()
    }
    skipped = all(manifests.values())
    taken: dict[str, int] = {}
    if not skipped:
        taken = forgotten.take_out(config, gone, but=(USERS, INTERACTIONS))
        _write(config, reader, None if told is None else told.rows, gone, identity)
        manifests = {name: artifact.peek(config.at(name)) for name in _CONTRACTS}
    facts = {name: dict(manifest.facts) for name, manifest in manifests.items() if manifest is not None}
    facts |= {"taken_out": taken} if taken else {}
    return {"at": str(config.root), **facts, "seconds": round(time.perf_counter() - started, 2), "skipped": skipped}


def catalogue(config: Config) -> tuple[pa.Table, Rejects]:
    """The products of the source as they are now, by product id, and the rows that are refused; nothing is written."""
    rejects = Rejects()
    reader = open_source(config.source, config.seed)
    raws = log.progress(reader.products(rejects), total=None, what="products", unit="batch")
    return clean.products(raws, rejects, currency=config.source.currency), rejects


def open_source(source: Source, seed: int) -> Reader:
    """The reader of `source`; `seed` draws the shoppers of the sample. Raises InputError where files are missing."""
    if source.kind == "sample":
        return _sample(source, seed)
    if source.kind in ("aihub", "kfashion"):
        return _aihub(source)
    if source.kind == "hm":
        found = hm.find(Path(source.folder))
        paths, kept = found.all(), {"kind", "currency", "limit"}
        products, events = partial(hm.products, found, source), partial(hm.events, found)
        users: Callable[[Rejects, pa.Array], Iterator[Raw]] = partial(hm.users, found)
    elif source.kind == "amazon":
        reviews = amazon.find(Path(source.folder))
        paths, kept = reviews.all(), {"kind", "currency", "event", "limit"}
        products, events = partial(amazon.products, reviews, source), partial(amazon.events, reviews)
        users = _no_users
    elif source.kind == "rtr":
        rentals = rtr.find(Path(source.folder))
        paths, kept = {"events": rentals}, {"kind", "currency", "limit"}
        products, events = partial(rtr.products, rentals, source), partial(rtr.events, rentals)
        users = partial(rtr.users, rentals)
    else:
        paths, kept = files.paths(source), set(Source.model_fields) - {"folder", "live_events"}
        products, events = partial(files.products, source), partial(files.events, source)
        users = partial(_profiles, source)

    def inputs() -> dict[str, str]:
        return {what: artifact.hash_file(path) for what, path in paths.items()}

    return Reader(inputs, source.model_dump(mode="json", include=kept), products, events, users)


def _no_users(_rejects: Rejects, _in_events: pa.Array) -> Iterator[Raw]:
    """None but those of the events."""
    return iter(())


def _profiles(source: Source, rejects: Rejects, _in_events: pa.Array) -> Iterator[Raw]:
    """All users of the users file: one without events may still visit the shop."""
    return files.users(source, rejects)


def _sample(source: Source, seed: int) -> Reader:
    made = sample.generate(seed)
    text = json.dumps([made.products, made.users, made.events], default=str, ensure_ascii=False)
    return Reader(
        inputs=lambda: {"sample": hashlib.sha256(text.encode()).hexdigest()},
        config={**source.model_dump(mode="json", include={"kind", "limit"}), "seed": seed},
        products=lambda _: files.first(_rows("sample products", made.products), source.limit),
        events=lambda _: _rows("sample events", made.events),
        users=lambda _, __: _rows("sample users", made.users),
    )


def _aihub(source: Source) -> Reader:
    folder = Path(source.folder)
    read = aihub.garments if source.kind == "aihub" else aihub.photographs
    return Reader(
        inputs=lambda: {"products": aihub.content_hash(folder)},
        config=source.model_dump(mode="json", include={"kind", "currency", "limit"}),
        products=lambda rejects: files.first(read(folder, rejects), source.limit),
        events=None,
        users=lambda _, __: iter(()),
    )


def _rows(name: str, rows: list[dict[str, Any]]) -> Iterator[Raw]:
    """Typed rows as one raw table; a map becomes one column per key."""
    flat = []
    for row in rows:
        maps = {field: value for field, value in row.items() if isinstance(value, dict)}
        keyed = {f"{field}.{key}": item for field, value in maps.items() for key, item in value.items()}
        flat.append({field: value for field, value in row.items() if field not in maps} | keyed)
    columns = dict.fromkeys(column for row in flat for column in row)
    table = pa.table({column: pa.array([row.get(column) for row in flat]) for column in columns})
    yield Raw(name, np.arange(len(rows)), table)


def _write(
    config: Config, reader: Reader, told: Raw | None, gone: Gone, identity: Mapping[str, Mapping[str, Any]]
) -> None:
    others = {name: forgotten.Filter(gone) for name in ("users", "events")}
    rejects = {"products": Rejects(), **{name: Rejects(each.hides) for name, each in others.items()}}
    limit, now = config.source.limit, datetime.now(UTC)
    raws = log.progress(reader.products(rejects["products"]), total=None, what="products", unit="batch")
    products = clean.products(raws, rejects["products"], currency=config.source.currency)
    events = clean.Events(clean.EVENT_TABLE.empty_table(), left_out=0, in_log=0)
    if reader.events is not None or (told is not None and told.table.num_rows):
        read = iter(()) if reader.events is None else others["events"](reader.events(rejects["events"]))
        raws = log.progress(read, total=None, what="events", unit="batch")
        ids = products.column("product_id").combine_chunks()
        events = clean.events(
            raws, rejects["events"], product_ids=ids, kind=config.source.event, cut=limit is not None, now=now,
            live=told,
        )  # fmt: skip
    buyers = events.table.column("user_id").unique().cast(pa.string())
    read = others["users"](reader.users(rejects["users"], buyers))
    raws = log.progress(read, total=None, what="users", unit="batch")
    users = clean.users(raws, rejects["users"], in_events=buyers, year=now.year)
    batches: dict[str, Iterable[pa.Table]] = {
        "products": [products], "users": [users], "events": clean.event_batches(events.table),
    }  # fmt: skip
    facts: dict[str, dict[str, int]] = {"events": {"left_out": events.left_out}, "users": {}}
    if told is not None:
        facts["events"] |= {"live_events": told.table.num_rows, "in_log": events.in_log}
    for name in facts:
        facts[name]["values_left_out"] = rejects[name].values_left_out
        facts[name] |= {"forgotten": others[name].rows} if gone else {}
        facts[name] |= {"perhaps_forgotten": others[name].perhaps} if others[name].perhaps else {}
    for name, contract in _CONTRACTS.items():
        manifest = dataset.write(
            config.at(name), contract, batches[name], **identity, rejects=rejects[name], facts=facts.get(name)
        )
        logger.info("%s: %d rows, %d refused", name, manifest.facts["rows"], manifest.facts["rejected"])
    for name in facts:
        if rejects[name].values_left_out:
            place = config.at(name) / dataset.REFUSED
            logger.warning("%s: %d values are not used: %s says why", name, rejects[name].values_left_out, place)
