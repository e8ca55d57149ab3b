"""Stage embed: the vector of every product, once, in item-row order, through Ray Data.

The blocks of rows are cut before Ray Data sees them and a product's vector does not depend on its batch
mates, so the number of actors and their order do not show in the result.

Products that the same tower embedded before, and of which it would read the same, keep their vector; the digest of
what it read stands beside it. Only products with an id that came after the tower's training are always embedded anew:
the row of such an id depends on all products that carry it. Finished blocks lie on disk, so a killed run goes on.
"""

import hashlib
import shutil
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

from rec import artifact, dataset, log, runtime
from rec.config import Config, Train
from rec.errors import ArtifactError
from rec.models import item_tower, token_map
from rec.models.item_inputs import TEXT_STATES, IntArray, ItemInputs, check_texts, text_states_manifest
from rec.models.item_tower import ItemTower
from rec.models.item_vectors import BLOCK_ROWS, item_vectors
from rec.models.known_ids import KnownIds
from rec.schema import DIGEST_BYTES, TENSORS, Contract, vectors
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

VECTORS, DONE, KEPT = "vectors.npy", "done.npy", "kept.npy"
"""Files of a run: float32[N, d] vectors; bool[blocks] which are there; bool[N] which products keep their vector."""
_READ = ("std_key", "std_id", "re_key", "re_id", "title_id")
"""Columns of TENSORS that the tower reads of a product."""

FloatArray = NDArray[np.float32]


class Embed:
    """An actor with the tower and all inputs. In: `block`, its item `rows`. Out: `block`, `vectors`, end to end."""

    def __init__(self, tower: Path, vocabulary: Path, tensors: Path, text_states: Path, train: Train) -> None:
        torch.set_num_threads(train.cpus_per_worker)
        device = torch.device("cuda" if train.use_gpu else "cpu")
        self._items = ItemInputs.load(tensors, text_states, ids=item_tower.read_shape(tower).reads_ids)
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
    work: dict[str, Any] = {"inputs": inputs, "config": {"width": width}}
    done = artifact.finished(target, kind=contract.kind, version=contract.version, **work)
    if done is not None:
        return {"vectors": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    runtime.start(config.cpus)
    train = config.item_tower.train
    runtime.require_gpus("item_tower.train.use_gpu", train.use_gpu * train.num_workers)
    cpus = train.num_workers * train.cpus_per_worker
    runtime.require_cpus("item_tower.train.num_workers", "item_tower.train.cpus_per_worker", cpus)
    read = dataset.read(config.at("tensors"), TENSORS, ["product_id", *_READ])
    digests = _digests(read)
    name = f"vectors-{artifact.fingerprint(kind=contract.kind, version=contract.version, **work)[:16]}"
    storage = config.at("runs") / name
    for other in set(storage.parent.glob("vectors-*")) - {storage}:  # of killed runs of other inputs
        shutil.rmtree(other)
    if not (storage / KEPT).exists():  # written last: else a killed run of the same work left all this
        _prepare(storage, target, contract, config, read, digests)
    vectors_made = _embed(config, storage)
    kept = int(np.load(storage / KEPT, allow_pickle=False).sum())
    rows = (
        pa.table({"product_id": ids, "vector": _fixed(vectors_made[rows]), "inputs": digests.take(rows)})
        for ids, rows in _blocks(read["product_id"])
    )
    manifest = dataset.write(target, contract, rows, **work, facts={"embedded": len(digests) - kept, "kept": kept})
    shutil.rmtree(storage)
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


def _prepare(
    storage: Path, target: Path, contract: Contract, config: Config, read: pa.Table, digests: pa.Array
) -> None:
    """Make the files of a run, with the vectors that the dataset at `target` has and that are still good."""
    storage.mkdir(parents=True, exist_ok=True)
    kept = np.zeros(len(digests), dtype=np.bool_)
    shape = (len(digests), config.item_tower.width)
    made = np.lib.format.open_memmap(storage / VECTORS, mode="w+", dtype=np.float32, shape=shape)
    for rows, values in _still_good(target, contract, config.at(item_tower.KIND), read, digests):
        made[rows] = values
        kept[rows] = True
    np.save(storage / DONE, np.zeros(-(-int((~kept).sum()) // BLOCK_ROWS), dtype=np.bool_), allow_pickle=False)
    with (storage / f"{KEPT}.tmp").open("wb") as file:
        np.save(file, kept, allow_pickle=False)
    (storage / f"{KEPT}.tmp").replace(storage / KEPT)


def _still_good(
    target: Path, contract: Contract, tower: Path, read: pa.Table, digests: pa.Array
) -> Iterator[tuple[IntArray, FloatArray]]:
    """(rows, their vectors) that the dataset at `target` has for products of which the same tower reads the same."""
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
    yield rows, values.reshape(len(found), -1)[place.to_numpy(zero_copy_only=False)[rows].astype(np.int64)]


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


def _embed(config: Config, storage: Path) -> FloatArray:
    """float32[N, d] of all products, in a file; blocks that a killed run finished are not made again.

    A block's vectors are written before it is marked as done, in file mappings that the kernel keeps when the process
    is killed; what the blocks are depends on what was kept alone, so a killed run ends with the same bytes.
    """
    made = np.load(storage / VECTORS, mmap_mode="r+", allow_pickle=False)
    done = np.load(storage / DONE, mmap_mode="r+", allow_pickle=False)
    rows = np.flatnonzero(~np.load(storage / KEPT, allow_pickle=False))
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    waiting = np.flatnonzero(~done).tolist()
    with log.bar(total=sum(len(blocks[number]) for number in waiting), what="embed", unit="product") as bar:
        for number, vectors_of_block in _embedded(config, blocks, waiting):
            assert not done[number], f"block {number} was embedded twice"
            made[blocks[number]] = vectors_of_block
            done[number] = True
            bar.update(len(vectors_of_block))
    assert done.all(), f"{(~done).sum()} blocks were not embedded"
    return made


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
