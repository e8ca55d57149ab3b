"""Stage embed: the vector of every product, once, in item-row order, through Ray Data.

The blocks of rows are cut before Ray Data sees them and a product's vector does not depend on its batch
mates, so the number of actors and their order do not show in the result.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from rec import artifact, dataset, log, runtime
from rec.config import Config, Train
from rec.models import item_tower, token_map
from rec.models.item_inputs import TEXT_STATES, IntArray, ItemInputs, check_texts, text_states_manifest
from rec.models.item_tower import ItemTower
from rec.schema import TENSORS, vectors
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

BLOCK_ROWS = 1_024


class Embed:
    """An actor with the tower and all inputs. In: `id`, numbers of blocks of item rows. Out: `row`, `vector`."""

    def __init__(
        self, tower: Path, vocabulary: Path, tensors: Path, text_states: Path, train: Train, block_rows: int
    ) -> None:
        torch.set_num_threads(train.cpus_per_worker)
        self._device = torch.device("cuda" if train.use_gpu else "cpu")
        self._items = ItemInputs.load(tensors, text_states, ids=item_tower.read_shape(tower).reads_ids)
        self._tower = _tower(tower, vocabulary, self._items).to(self._device)
        self._block_rows = block_rows

    @torch.inference_mode()
    def __call__(self, numbers: pa.Table) -> pa.Table:
        starts = [number * self._block_rows for number in numbers["id"].to_pylist()]
        blocks = [np.arange(start, min(start + self._block_rows, len(self._items))) for start in starts]
        made = np.concatenate([self._vectors(rows) for rows in blocks])
        vector = pa.FixedSizeListArray.from_arrays(made.reshape(-1), made.shape[1])
        return pa.table({"row": np.concatenate(blocks), "vector": vector})

    def _vectors(self, rows: IntArray) -> NDArray[np.float32]:
        """float32[len(rows), d]"""
        made: NDArray[np.float32] = self._tower(self._items.batch(rows).to(self._device)).cpu().numpy()
        return made


def _tower(folder: Path, vocabulary: Path, items: ItemInputs) -> ItemTower:
    """The trained tower, with rows for what the vocabulary got since."""
    std, re = StdVocabulary.load(vocabulary / "std.toml"), ReVocabulary.load(vocabulary / "re.json")
    return token_map.grown(item_tower.load(folder), std, re, items)


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
    work: dict[str, Any] = {"inputs": inputs, "config": {"width": width}}
    done = artifact.finished(target, kind=contract.kind, version=contract.version, **work)
    if done is not None:
        return {"vectors": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    runtime.start(config.cpus)
    product_ids = dataset.read(config.at("tensors"), TENSORS, ["product_id"])["product_id"]
    made = _embed_all(config, len(product_ids))
    rows = pa.table({"product_id": product_ids, "vector": pa.FixedSizeListArray.from_arrays(made.reshape(-1), width)})
    manifest = dataset.write(target, contract, [rows], **work)
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


def _embed_all(config: Config, count: int) -> NDArray[np.float32]:
    """float32[N, d] in item-row order; every row is written exactly once."""
    made = np.empty((count, config.item_tower.width), dtype=np.float32)
    seen = np.zeros(count, dtype=np.bool_)
    with log.bar(total=count, what="embed", unit="product") as bar:
        for rows, block in _embedded(config, count):
            assert not seen[rows].any(), "a product was embedded twice"
            seen[rows] = True
            made[rows] = block
            bar.update(len(rows))
    assert seen.all(), f"{(~seen).sum()} products were not embedded"
    return made


def _embedded(config: Config, count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """(item rows, their vectors) of all blocks, in whatever order the actors finish them."""
    if count == 0:
        return
    train = config.item_tower.train
    blocks = -(-count // BLOCK_ROWS)
    paths = (config.at(item_tower.KIND), config.at("vocabulary"), config.at("tensors"), config.at(TEXT_STATES))
    embedded = ray.data.range(blocks, override_num_blocks=blocks).map_batches(
        Embed,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=train.cpus_per_worker,
        num_gpus=int(train.use_gpu),
        compute=ray.data.ActorPoolStrategy(size=train.num_workers),
        fn_constructor_args=(*paths, train, BLOCK_ROWS),
    )
    embedded.context.enable_progress_bars = False
    for batch in embedded.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(batch, pa.Table)
        values: NDArray[np.float32] = batch["vector"].combine_chunks().flatten().to_numpy()
        yield batch["row"].to_numpy(), values.reshape(batch.num_rows, -1)
