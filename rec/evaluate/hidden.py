"""Parts of a recipe as stores of their own: some products for a quick run, all but the hidden ones, some events only.

Hidden products are whole content groups. The store that towers are trained from has neither them nor their events, so
no training code has to be trusted to leave them out; only the vocabulary, whose RE words they helped to count, is that
of the whole recipe.
"""

import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec import artifact, dataset, histories
from rec.artifact import Manifest
from rec.config import Config
from rec.errors import ArtifactError
from rec.histories import Histories
from rec.models.item_inputs import TEXT_STATES, TEXT_STATES_VERSION, text_states_manifest
from rec.schema import EVENTS, INTERACTIONS, PRODUCTS, TENSORS, Contract

FOLDER = "cold_items"
"""Of the parts, in the recipe's own folder."""
AS_THEY_ARE = ("users", "vocabulary")
DATASETS = ("products", "users", "events", "tensors", "vocabulary", TEXT_STATES)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def draw(groups: Ints, share: float, seed: int) -> Bools:
    """bool[N]: at most the share of the products, whole content groups, `groups` int64[N] being their numbers."""
    return ~_first_groups(groups, np.random.default_rng(seed).permutation(np.unique(groups)), (1 - share) * len(groups))


def bought_first(groups: Ints, h: Histories, count: int, seed: int) -> Bools:
    """bool[N]: about `count` products, whole groups, those with an event first and otherwise at random."""
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    bought = np.isin(order, groups[h.items])
    return _first_groups(groups, np.concatenate([order[bought], order[~bought]]), count)


def _first_groups(groups: Ints, order: Ints, count: float) -> Bools:
    """bool[N]: the products of the first groups of `order` that have at least `count` products."""
    sizes = np.bincount(groups)[order]
    before = np.cumsum(sizes) - sizes
    return np.isin(groups, order[before < count])


def open_events(h: Histories, hidden: Bools) -> Bools:
    """bool[E]: the events of a store without the products `hidden`, of which `leave_one_out` trains on none held out.

    A user's held-out events stay, to be held out again, unless hiding leaves too few events to hold any out.
    """
    user = np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))
    seen = ~hidden[h.items]
    enough = np.bincount(user[seen], minlength=len(h.user_ids)) >= histories.MIN_EVENTS
    return seen & (histories.training_events(h) | enough[user])


def part(config: Config, name: str) -> Config:
    """The recipe on the store of the part `name`."""
    return config.model_copy(update={"store": str(config.at(FOLDER)), "name": name})


def write(config: Config, target: Config, kept: Bools, h: Histories, events: Bools) -> None:
    """Write the store of `target`: of the products of `config` those `kept`, of its histories' events those `events`.

    Text states go along where `config` has them. What is there already is not written again.
    """
    target.root.mkdir(parents=True, exist_ok=True)
    for name in AS_THEY_ARE:
        link(config, target, name)
    for name, contract in (("products", PRODUCTS), ("tensors", TENSORS)):
        if kept.all():
            link(config, target, name)
            continue
        rows = partial(_kept, config.at(name), contract, kept)
        _write(target.at(name), contract, rows, dataset.read_manifest(config.at(name), contract), kept)
    source = dataset.read_manifest(config.at("events"), INTERACTIONS)
    rows = partial(_events, config, h, events)
    _write(target.at("events"), INTERACTIONS, rows, source, np.concatenate([kept, events]))
    if artifact.peek(config.at(TEXT_STATES)) is not None:
        if kept.all():
            link(config, target, TEXT_STATES)
        else:
            _write_states(config.at(TEXT_STATES), target, kept)


def check(target: Config, hidden_ids: pa.Array) -> None:
    """Raise ArtifactError when the store that towers are trained from has any of the products `hidden_ids`."""
    for name, contract in (("products", PRODUCTS), ("tensors", TENSORS), ("events", INTERACTIONS)):
        ids = dataset.read(target.at(name), contract, ["product_id"])["product_id"]
        leaked = ids.filter(pc.is_in(ids, value_set=hidden_ids))
        if len(leaked):
            raise ArtifactError(
                f"{target.at(name)} has {len(leaked)} rows of hidden products such as {leaked[0].as_py()!r}: "
                f"remove {target.root.parent} and run the benchmark again"
            )


def link(config: Config, target: Config, name: str) -> None:
    """Let `target` have the artifact `name` of `config`."""
    target.root.mkdir(parents=True, exist_ok=True)
    if not target.at(name).exists():
        target.at(name).unlink(missing_ok=True)  # a link to what is gone
        target.at(name).symlink_to(os.path.relpath(config.at(name), target.root), target_is_directory=True)


def _kept(folder: Path, contract: Contract, kept: Bools) -> pa.Table:
    """The rows of a dataset that `kept` says."""
    return dataset.read(folder, contract).filter(pa.array(kept))


def _events(config: Config, h: Histories, chosen: Bools) -> pa.Table:
    """Rows of the events dataset; values, sizes and fits, which no stage but the fit head's reads, are left out."""
    ids = dataset.read(config.at("products"), PRODUCTS, ["product_id"])["product_id"]
    user = np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))[chosen]
    return pa.table(
        {
            "user_id": pa.array(h.user_ids, pa.string()).take(pa.array(user)),
            "product_id": ids.take(pa.array(h.items[chosen])),
            "event": pa.array(EVENTS, pa.string()).take(pa.array(h.events[chosen] - 1)),
            "at": pa.array(h.at[chosen]).cast(INTERACTIONS.schema.field("at").type),
            "value": pa.nulls(len(user), pa.float32()),
            "context": pa.array(h.contexts, pa.string()).filter(pa.array(chosen)),
            "size": pa.nulls(len(user), pa.string()),
            "size_number": pa.nulls(len(user), pa.float32()),
            "fit": pa.nulls(len(user), pa.string()),
        }
    )


def _work(source: Manifest, kept: Bools) -> dict[str, Any]:
    """The identity of the part of `source` that `kept` says; what the source was made with stays readable."""
    digest = sha256(np.packbits(kept).tobytes()).hexdigest()
    return {"inputs": {"whole": source.content_hash}, "config": {**source.config, "kept": digest}}


def _write(target: Path, contract: Contract, rows: Callable[[], pa.Table], source: Manifest, kept: Bools) -> None:
    """Write what `rows` makes, which is not asked where `target` is there."""
    work = _work(source, kept)
    if artifact.finished(target, kind=contract.kind, version=contract.version, **work) is None:
        dataset.write(target, contract, [rows()], **work)


def _write_states(whole: Path, target: Config, kept: Bools) -> None:
    """The text states with the rows of the items kept; the states themselves are one file on disk for both."""
    source = text_states_manifest(whole)
    work: dict[str, Any] = {"kind": TEXT_STATES, "version": TEXT_STATES_VERSION, **_work(source, kept)}
    if artifact.finished(target.at(TEXT_STATES), **work) is not None:
        return
    with artifact.write(target.at(TEXT_STATES), **work) as draft:
        for name in ("states.npy", "offsets.npy"):
            artifact.link(whole / name, draft.path / name)
        rows = np.load(whole / "text_of_item.npy", allow_pickle=False)[kept]
        np.save(draft.path / "text_of_item.npy", rows, allow_pickle=False)
        draft.note(**source.facts)
