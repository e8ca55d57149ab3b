"""Stage encode: token states of every distinct product text, once.

    text_states/states.npy        float16[T, width]  states of all tokens of all texts, end to end
                                                     (mode `top`: below the layers that the item tower trains)
    text_states/tokens.npy        int32[T]           ids of these tokens
    text_states/offsets.npy       int64[D + 1]       text i is states[offsets[i]:offsets[i + 1]]
    text_states/text_of_item.npy  int64[N]           item row -> text

Many products share a text (105,542 H&M articles have some 47,000), so this is where the encoder's time is
saved. The batches are cut before Ray Data sees them: neither the number of actors nor their order shows in
a byte of the result.

Texts whose tokens the same encoder read before keep their states; only the others are encoded. Finished batches lie
on disk, so a killed run goes on.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from rec import artifact, dataset, log, partial_array, runtime
from rec.config import Config, Text
from rec.errors import ArtifactError
from rec.models import encoder_files, text_encoder
from rec.models.encoder_files import ENCODER_FILES
from rec.models.item_inputs import (
    LAYERS_ABOVE,
    TEXT_STATES,
    TEXT_STATES_VERSION,
    IntArray,
    Ragged,
    positions,
)
from rec.models.text_encoder import HalfArray, TextEncoder
from rec.partial_array import PartialArray
from rec.schema import TENSORS

_TOKENS = "tokens.npy"
FEW = 64
"""Batches that are encoded in this process, unless on a GPU: actors take longer to start."""

FULL_TOKENS = 64
"""A batch of fewer tokens is filled up with itself. Over very few rows a CPU's matrix product sums in another order
(MKL: up to ten): without this the states of a lone short text would differ in their last bits."""
_KEPT_AT_ONCE = 1_024
"""Texts whose earlier states are in memory at once."""


class Encode:
    """An actor with the encoder. In: batches of texts of one length: `batch`, its number, `texts`, how many, and
    `tokens`, theirs end to end. Out: `batch`, `states` as float16 bytes."""

    def __init__(self, text: Text, layers_above: int) -> None:
        torch.set_num_threads(text.cpus_per_actor)
        self._encoder = text_encoder.load(text, layers_above).to(torch.device("cuda" if text.use_gpu else "cpu"))

    def __call__(self, batches: pa.Table) -> pa.Table:
        return _states(self._encoder, batches)


def _states(encoder: TextEncoder, batches: pa.Table) -> pa.Table:
    states = []
    for texts, tokens in zip(batches["texts"].to_pylist(), batches["tokens"].to_pylist(), strict=True):
        ids = np.array(tokens).reshape(texts, -1).tolist() * -(-FULL_TOKENS // len(tokens))
        states.append(np.concatenate(encoder.token_states(ids, len(ids))[:texts]).tobytes())
    return pa.table({"batch": batches["batch"], "states": pa.array(states, pa.large_binary())})


def run(config: Config) -> dict[str, Any]:
    """Encode the texts of the tensors dataset; returns counts and where the artifact is."""
    target = config.at(TEXT_STATES)
    tensors = dataset.read_manifest(config.at("tensors"), TENSORS)
    _check_tokenizer(tensors, config)
    inputs = {"tensors": tensors.content_hash}
    layers_above = config.item_tower.layers_above_states
    files = text_encoder.files(config.text, artifact.peek(target))
    made_by = {"encoder": config.text.encoder, **files} | ({LAYERS_ABOVE: layers_above} if layers_above else {})
    work: dict[str, Any] = {"kind": TEXT_STATES, "version": TEXT_STATES_VERSION, "inputs": inputs, "config": made_by}
    done = artifact.finished(target, **work)
    if done is not None:
        artifact.sweep_runs(config.at("runs"), TEXT_STATES)  # of a run that was killed after the artifact was written
        return {"text_states": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    titles = Ragged.of(dataset.read(config.at("tensors"), TENSORS, ["title_id"])["title_id"])
    first, text_of_item = distinct(titles)
    texts = titles.take(first)
    encoder = text_encoder.load(config.text, layers_above)  # here too: a wrong option must fail before any actor starts
    storage = partial_array.folder(config.at("runs"), work)
    if not partial_array.begun(storage):
        shape = (len(texts.values), encoder.width)
        partial_array.begin(storage, shape, np.float16, len(first), _still_good(target, made_by, texts))
    states = PartialArray(storage)
    _encode_all(config, encoder, texts, states)
    kept = int(states.kept.sum())
    facts = {"items": len(text_of_item), "texts": len(first), "tokens": len(texts.values), "width": encoder.width}
    facts |= {"encoded": len(first) - kept, "kept": kept}
    with artifact.write(target, **work) as draft:
        artifact.link(states.path, draft.path / "states.npy")
        np.save(draft.path / _TOKENS, texts.values.astype(np.int32), allow_pickle=False)
        np.save(draft.path / "offsets.npy", texts.offsets, allow_pickle=False)
        np.save(draft.path / "text_of_item.npy", text_of_item, allow_pickle=False)
        draft.note(**facts)
    states.remove()
    return {"text_states": str(target), **facts, "seconds": round(time.monotonic() - started, 1)}


def distinct(titles: Ragged) -> tuple[IntArray, IntArray]:
    """The first item int64[D] of each distinct title, ascending, and the text number of each item, int64[N]."""
    text_of_item = _whole(titles).dictionary_encode().indices.to_numpy().astype(np.int64)  # as they first occur
    return np.unique(text_of_item, return_index=True)[1].astype(np.int64), text_of_item


def _whole(texts: Ragged) -> pa.Array:
    """The token ids of each text as one value."""
    raw = [None, pa.py_buffer(texts.offsets * texts.values.itemsize), pa.py_buffer(texts.values)]
    return pa.Array.from_buffers(pa.large_binary(), len(texts.offsets) - 1, raw)


def _still_good(target: Path, made_by: Mapping[str, Any], texts: Ragged) -> Iterator[partial_array.Piece]:
    """The states that the artifact at `target` has of the same tokens by the same encoder."""
    older = artifact.peek(target)
    if older is None or (older.kind, older.version, older.config) != (TEXT_STATES, TEXT_STATES_VERSION, made_by):
        return
    if not (target / _TOKENS).exists():  # made before there was the file
        return
    before = Ragged(
        np.load(target / _TOKENS, allow_pickle=False).astype(np.int64),
        np.load(target / "offsets.npy", allow_pickle=False),
    )
    states: HalfArray = np.load(target / "states.npy", mmap_mode="r", allow_pickle=False)
    place = pc.fill_null(pc.index_in(_whole(texts), _whole(before)), -1).to_numpy().astype(np.int64)
    found = np.flatnonzero(place >= 0)
    for start in range(0, len(found), _KEPT_AT_ONCE):
        some = found[start : start + _KEPT_AT_ONCE]
        yield some, _rows(texts, some), states[_rows(before, place[some])]


def _rows(texts: Ragged, some: IntArray) -> IntArray:
    """Where the states of these texts lie, text after text."""
    return positions(texts.offsets, some)[0]


def _check_tokenizer(tensors: artifact.Manifest, config: Config) -> None:
    """Token ids of another tokenizer would be encoded into nonsense."""
    made_with = tensors.config["text"]
    if made_with["encoder"] != config.text.encoder:
        raise ArtifactError(
            f"the titles in {config.at('tensors')} were cut into tokens for text.encoder {made_with['encoder']!r}, not "
            f"{config.text.encoder!r}: run `{TENSORS.made_by}` again with the option as it is now"
        )
    encoder_files.check(
        config.at("tensors"),
        encoder_files.stated(made_with),
        text_encoder.files(config.text, tensors).get(ENCODER_FILES),
        encoder=config.text.encoder,
        reader="`python jobs/encode.py`",
        remedy=f"run `{TENSORS.made_by}` again",
    )


def _encode_all(config: Config, encoder: TextEncoder, texts: Ragged, states: PartialArray) -> None:
    """Fill `states` with those of all texts, batch by batch, in whatever order the actors finish them.

    What the batches are and who encodes them depends on what was kept and on text.batch_size, not on what a killed
    run finished: another processor would give other last bits.
    """
    new = np.flatnonzero(~states.kept)
    lengths = np.diff(texts.offsets)[new].tolist()
    blocks = [new[rows] for rows in text_encoder.equal_lengths(lengths, config.text.batch_size)]  # a blank is in none
    waiting = states.waiting(blocks)
    asked = [_asked(number, texts, blocks[number]) for number in waiting]
    here = len(blocks) <= FEW and not config.text.use_gpu
    total = sum(len(blocks[number]) for number in waiting)
    with log.bar(total=total, what=f"encode with {config.text.encoder}", unit="text") as bar:
        for number, raw in _encoded(config, encoder if here else None, asked):
            where = _rows(texts, blocks[number])
            states.put(blocks[number], where, np.frombuffer(raw, dtype=np.float16).reshape(len(where), -1))
            bar.update(len(blocks[number]))
    assert not states.waiting(blocks), f"batches {states.waiting(blocks)} were not encoded"


def _asked(number: int, texts: Ragged, block: IntArray) -> pa.Table:
    """What an actor gets of a batch."""
    tokens = texts.values[_rows(texts, block)].astype(np.int32)
    return pa.table({"batch": [number], "texts": [len(block)], "tokens": pa.array([tokens], pa.list_(pa.int32()))})


def _encoded(config: Config, encoder: TextEncoder | None, asked: Sequence[pa.Table]) -> Iterator[tuple[int, bytes]]:
    """(number, float16 states) of the batches, by `encoder`, or by actors where there is none."""
    if not asked:
        return
    threads = config.text.cpus_per_actor
    for batch in _by_actors(asked, config) if encoder is None else _here(asked, encoder, threads):
        yield from zip(batch["batch"].to_pylist(), batch["states"].to_pylist(), strict=True)


def _here(batches: Sequence[pa.Table], encoder: TextEncoder, threads: int) -> Iterator[pa.Table]:
    """In this process, by as many threads as an actor has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield from (_states(encoder, batch) for batch in batches)
    finally:
        torch.set_num_threads(before)


def _by_actors(batches: Sequence[pa.Table], config: Config) -> Iterator[pa.Table]:
    """Through Ray Data."""
    text = config.text
    runtime.start(config.cpus)
    runtime.require_gpus("text.use_gpu", text.use_gpu * text.num_actors)
    runtime.require_cpus("text.num_actors", "text.cpus_per_actor", text.num_actors * text.cpus_per_actor)
    encoded = ray.data.from_arrow(batches).map_batches(
        Encode,
        batch_format="pyarrow",
        batch_size=1,  # a row is all that is encoded at once; with GPUs Ray Data wants it said
        num_cpus=text.cpus_per_actor,
        num_gpus=int(text.use_gpu),
        compute=ray.data.ActorPoolStrategy(size=text.num_actors),
        fn_constructor_args=(text, config.item_tower.layers_above_states),
    )
    encoded.context.enable_progress_bars = False
    for batch in encoded.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(batch, pa.Table)
        yield batch
