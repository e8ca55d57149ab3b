"""Stage embed: the vector of every product, once, in item-row order, through Ray Data.

The blocks of rows are cut before Ray Data sees them and a product's vector does not depend on its batch
mates, so the number of actors and their order do not show in the result.

Products that the same tower embedded before, and of which it would read the same, keep their vector; the digest of
what it read stands beside it. Only products with an id that came after the tower's training are always embedded anew:
the row of such an id depends on all products that carry it. Finished blocks lie on disk, so a killed run goes on.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray

from rec import artifact, dataset, log, partial_array, runtime
from rec.config import Config, Train
from rec.errors import ArtifactError
from rec.models import encoder_files, item_tower, token_map
from rec.models.item_inputs import TEXT_STATES, IntArray, ItemInputs, check_texts, text_states_manifest
from rec.models.item_tower import ItemTower
from rec.models.item_vectors import BLOCK_ROWS, item_vectors
from rec.models.known_ids import KnownIds
from rec.partial_array import PartialArray
from rec.schema import DIGEST_BYTES, TENSORS, Contract, vectors
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

_READ = ("std_key", "std_id", "re_key", "re_id", "title_id")
"""Columns of TENSORS that the tower reads of a product."""

FloatArray = NDArray[np.float32]


class Embed:
    """An actor with the tower and all inputs. In: `block`, its item `rows`. Out: `block`, `vectors`, end to end."""

    def __init__(self, tower: Path, vocabulary: Path, tensors: Path, text_states: Path, train: Train) -> None:
        torch.set_num_threads(train.cpus_per_worker)
        device = torch.device("cuda" if train.use_gpu else "cpu")
        self._items = item_tower.inputs_of(item_tower.read_shape(tower), tensors, text_states)
        self._tower = _tower(tower, vocabulary, self._items).to(device)

    def __call__(self, asked: pa.Table) -> pa.Table:
        made = [self._vectors(np.array(rows)) for rows in asked["rows"].to_pylist()]
        return pa.table({"block": asked["block"], "vectors": pa.array(made, pa.list_(pa.float32()))})

    def _vectors(self, rows: IntArray) -> FloatArray:
        """float32[len(rows) * d]"""
        return item_vectors(self._tower, self._items, rows).reshape(-1)


def _tower(folder: Path, vocabulary: Path, items: ItemInputs) -> ItemTower:
    """The trained tower, with rows for what the vocabulary got since."""
    return token_map.grown(item_tower.restore(folder), *_vocabularies(vocabulary), items)


def run(config: Config) -> dict[str, Any]:
    """Embed all products with the trained item tower; returns counts and where the dataset is."""
    width = config.item_tower.width
    contract, target = vectors(width), config.at("vectors")
    inputs = {
        "tensors": dataset.read_manifest(config.at("tensors"), TENSORS).content_hash,
        "text_states": text_states_manifest(config.at(TEXT_STATES)).content_hash,
        "item_tower": item_tower.manifest(config.at(item_tower.KIND)).content_hash,
    }
    _check_texts(config)
    _check_ids(config)
    identity: dict[str, Any] = {"inputs": inputs, "config": {"width": width}}
    work: dict[str, Any] = {"kind": contract.kind, "version": contract.version, **identity}
    done = artifact.finished(target, **work)
    if done is not None:
        artifact.sweep_runs(config.at("runs"), contract.kind)  # of a run that was killed after the artifact was written
        return {"vectors": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    runtime.start(config.cpus)
    train = config.item_tower.train
    runtime.require_gpus("item_tower.train.use_gpu", train.use_gpu * train.num_workers)
    cpus = train.num_workers * train.cpus_per_worker
    runtime.require_cpus("item_tower.train.num_workers", "item_tower.train.cpus_per_worker", cpus)
    read = dataset.read(config.at("tensors"), TENSORS, ["product_id", *_READ])
    digests = _digests(read)
    storage = partial_array.folder(config.at("runs"), work)
    if not partial_array.begun(storage):
        good = _still_good(target, contract, config.at(item_tower.KIND), read, digests)
        partial_array.begin(storage, (len(digests), width), np.float32, len(digests), good)
    made = PartialArray(storage)
    _embed_all(config, made)
    kept = int(made.kept.sum())
    rows = (
        pa.table({"product_id": ids, "vector": _fixed(made.values[rows]), "inputs": digests.take(rows)})
        for ids, rows in _blocks(read["product_id"])
    )
    facts = {"embedded": len(digests) - kept, "kept": kept}
    manifest = dataset.write(target, contract, rows, **identity, facts=facts)
    made.remove()
    return {"vectors": str(target), **manifest.facts, "seconds": round(time.monotonic() - started, 1)}


def _check_texts(config: Config) -> None:
    """Another encoder's titles would go through the tower without a sign."""
    shape = item_tower.read_shape(config.at(item_tower.KIND))
    check_texts(
        config.at("tensors"),
        config.at(TEXT_STATES),
        encoder=shape.text_encoder,
        layers_above=shape.layers_above_states,
        reader=f"the item tower in {config.at(item_tower.KIND)}",
        files=encoder_files.stated(item_tower.manifest(config.at(item_tower.KIND)).config),
    )
    if shape.width != config.item_tower.width:
        raise ArtifactError(
            f"the item tower in {config.at(item_tower.KIND)} makes vectors of {shape.width} numbers, but "
            f"item_tower.width is {config.item_tower.width}: run `python jobs/pretrain.py` again, or give the option "
            "that it was trained with"
        )


def _check_ids(config: Config) -> None:
    """Nor would the ids of another vocabulary show. A tower that does not say what its ids mean is taken as it is."""
    tower, vocabulary = config.at(item_tower.KIND), config.at("vocabulary")
    known = KnownIds.load(tower)
    if known is not None:
        known.check(KnownIds.of(*_vocabularies(vocabulary)), tower, vocabulary)


def _vocabularies(folder: Path) -> tuple[StdVocabulary, ReVocabulary]:
    return StdVocabulary.load(folder / "std.toml"), ReVocabulary.load(folder / "re.json")


def _digests(read: pa.Table) -> pa.Array:
    """A digest of the values in _READ of each row, as column `inputs` of the vectors."""
    columns = [read[name].combine_chunks() for name in _READ]
    bounds = [np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())]) for column in columns]
    values = [memoryview(column.flatten().to_numpy()) for column in columns]
    made = []
    for row in range(len(read)):
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for ends, value in zip(bounds, values, strict=True):
            part = value[ends[row] : ends[row + 1]]
            digest.update(len(part).to_bytes(4, "little"))
            digest.update(part)
        made.append(digest.digest())
    return pa.array(made, pa.binary(DIGEST_BYTES))


def _still_good(
    target: Path, contract: Contract, tower: Path, read: pa.Table, digests: pa.Array
) -> Iterator[partial_array.Piece]:
    """The vectors that the dataset at `target` has for products of which the same tower reads the same."""
    older = artifact.peek(target)
    if older is None or (older.kind, older.version) != (contract.kind, contract.version):
        return
    if older.inputs["item_tower"] != item_tower.manifest(tower).content_hash:
        return
    found = dataset.read(target, contract)
    place = pc.index_in(read["product_id"], found["product_id"].combine_chunks()).combine_chunks()
    before = found["inputs"].combine_chunks().take(place)
    same = pc.fill_null(pc.equal(before, digests), False).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(same & ~_newer(read, item_tower.read_shape(tower)))
    values: FloatArray = found["vector"].combine_chunks().flatten().to_numpy()
    kept = values.reshape(len(found), -1)
    lies = place.to_numpy(zero_copy_only=False)[rows].astype(np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        some = rows[start : start + BLOCK_ROWS]
        yield some, some, kept[lies[start : start + BLOCK_ROWS]]


def _newer(read: pa.Table, shape: item_tower.Shape) -> NDArray[np.bool_]:
    """bool[N]: products with an id that came after the tower's training."""
    found = np.zeros(len(read), dtype=np.bool_)
    for name, known in (("std_id", shape.num_std_ids), ("re_id", shape.num_re_tokens)):
        column = read[name].combine_chunks()
        row = np.repeat(np.arange(len(read)), column.value_lengths().to_numpy())
        found[row[column.flatten().to_numpy() >= known]] = True
    return found


def _blocks(product_ids: pa.ChunkedArray) -> Iterator[tuple[pa.ChunkedArray, IntArray]]:
    """The ids and rows of all products, block by block."""
    for start in range(0, len(product_ids), BLOCK_ROWS):
        ids = product_ids.slice(start, BLOCK_ROWS)
        yield ids, np.arange(start, start + len(ids))


def _fixed(block: FloatArray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(block).reshape(-1), block.shape[1])


def _embed_all(config: Config, made: PartialArray) -> None:
    """Fill `made` with the vectors of all products, block by block, in whatever order the actors finish them."""
    new = np.flatnonzero(~made.kept)
    blocks = [new[start : start + BLOCK_ROWS] for start in range(0, len(new), BLOCK_ROWS)]
    waiting = made.waiting(blocks)
    with log.bar(total=sum(len(blocks[number]) for number in waiting), what="embed", unit="product") as bar:
        for number, vectors_of_block in _embedded(config, blocks, waiting):
            made.put(blocks[number], blocks[number], vectors_of_block)
            bar.update(len(vectors_of_block))
    assert not made.waiting(blocks), f"blocks {made.waiting(blocks)} were not embedded"


def _embedded(config: Config, blocks: list[IntArray], waiting: list[int]) -> Iterator[tuple[int, FloatArray]]:
    """(number, vectors) of the blocks of rows that wait, in whatever order the actors finish them."""
    if not waiting:
        return
    train = config.item_tower.train
    paths = (config.at(item_tower.KIND), config.at("vocabulary"), config.at("tensors"), config.at(TEXT_STATES))
    asked = [pa.table({"block": [number], "rows": [blocks[number]]}) for number in waiting]
    embedded = ray.data.from_arrow(asked).map_batches(
        Embed,
        batch_format="pyarrow",
        batch_size=1,  # a row is a block; with GPUs Ray Data wants it said
        num_cpus=train.cpus_per_worker,
        num_gpus=int(train.use_gpu),
        compute=ray.data.ActorPoolStrategy(size=train.num_workers),
        fn_constructor_args=(*paths, train),
    )
    embedded.context.enable_progress_bars = False
    for batch in embedded.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(batch, pa.Table)
        for number, values in zip(batch["block"].to_pylist(), batch["vectors"].combine_chunks(), strict=True):
            flat: FloatArray = values.values.to_numpy()
            yield number, flat.reshape(len(blocks[number]), -1)
