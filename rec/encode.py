"""Stage encode: token states of every distinct product text, once.

    text_states/states.npy        float16[T, width]  states of all tokens of all texts, end to end
                                                     (mode `top`: below the layers that the item tower trains)
    text_states/offsets.npy       int64[D + 1]       text i is states[offsets[i]:offsets[i + 1]]
    text_states/text_of_item.npy  int64[N]           item row -> text

Many products share a text (105,542 H&M articles have some 47,000), so this is where the encoder's time is
saved. The batches are cut before Ray Data sees them: neither the number of actors nor their order shows in
a byte of the result.
"""

import os
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
from rec.config import Config, Text
from rec.errors import ArtifactError, ConfigError
from rec.models import text_encoder
from rec.models.item_inputs import ENCODER_FILES, LAYERS_ABOVE, TEXT_STATES, TEXT_STATES_VERSION, IntArray, Ragged
from rec.models.text_encoder import TextEncoder
from rec.schema import TENSORS

FEW = 64
"""Batches that are encoded in this process: actors take longer to start."""


class Encode:
    """An actor with the encoder. In: batches, each the numbers `text` of texts of one length and their tokens
    `tokens`, end to end. Out: `text`, `states` as float16 bytes."""

    def __init__(self, text: Text, layers_above: int) -> None:
        torch.set_num_threads(text.cpus_per_actor)
        self._encoder = text_encoder.load(text, layers_above).to(torch.device("cuda" if text.use_gpu else "cpu"))

    def __call__(self, batches: pa.Table) -> pa.Table:
        return _states(self._encoder, batches)


def _states(encoder: TextEncoder, batches: pa.Table) -> pa.Table:
    rows: list[int] = []
    states: list[bytes] = []
    for batch in batches.to_pylist():
        count = len(batch["text"])
        ids = np.array(batch["tokens"]).reshape(count, -1).tolist()
        rows += batch["text"]
        states += [state.tobytes() for state in encoder.token_states(ids, batch_size=count)]
    return pa.table({"text": rows, "states": pa.array(states, pa.binary())})


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
        return {"text_states": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    titles = Ragged.of(dataset.read(config.at("tensors"), TENSORS, ["title_id"])["title_id"])
    first, text_of_item = distinct(titles)
    encoder = text_encoder.load(config.text, layers_above)  # here too: a wrong option must fail before any actor starts
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(titles.offsets[first + 1] - titles.offsets[first])])
    batches = _batches(titles, first, config.text.batch_size)
    if len(batches) > FEW:
        _check_resources(config)
        runtime.start(config.cpus)
        runtime.require_gpus("text.use_gpu", config.text.use_gpu * config.text.num_actors)
    with artifact.write(target, **work) as draft:
        np.save(draft.path / "offsets.npy", offsets, allow_pickle=False)
        np.save(draft.path / "text_of_item.npy", text_of_item, allow_pickle=False)
        _encode_all(draft.path / "states.npy", batches, offsets, encoder, config)
        facts = {"items": len(text_of_item), "texts": len(first), "tokens": int(offsets[-1]), "width": encoder.width}
        draft.note(**facts)
    return {"text_states": str(target), **facts, "seconds": round(time.monotonic() - started, 1)}


def distinct(titles: Ragged) -> tuple[IntArray, IntArray]:
    """The first item int64[D] of each distinct title, ascending, and the text number of each item, int64[N]."""
    raw = [None, pa.py_buffer(titles.offsets * titles.values.itemsize), pa.py_buffer(titles.values)]
    encoded = pa.Array.from_buffers(pa.large_binary(), len(titles.offsets) - 1, raw).dictionary_encode()
    text_of_item = encoded.indices.to_numpy().astype(np.int64)  # numbered in order of first occurrence
    return np.unique(text_of_item, return_index=True)[1].astype(np.int64), text_of_item


def _batches(titles: Ragged, first: IntArray, batch_size: int) -> list[pa.Table]:
    """What is encoded at once, a row each; a blank text is in none."""
    lengths = titles.offsets[first + 1] - titles.offsets[first]
    made = []
    for rows in text_encoder.equal_lengths(lengths.tolist(), batch_size):
        tokens = titles.padded(first[rows]).ravel().astype(np.int32)  # of one length: nothing is padded
        made.append(pa.table({"text": [rows], "tokens": pa.array([tokens], pa.list_(pa.int32()))}))
    return made


def _check_tokenizer(tensors: artifact.Manifest, config: Config) -> None:
    """Token ids of another tokenizer would be encoded into nonsense."""
    made_with = tensors.config["text"]
    if made_with["encoder"] != config.text.encoder:
        raise ArtifactError(
            f"the titles in {config.at('tensors')} were cut into tokens for text.encoder {made_with['encoder']!r}, not "
            f"{config.text.encoder!r}: run `{TENSORS.made_by}` again with the option as it is now"
        )
    if made_with.get(ENCODER_FILES) != text_encoder.files(config.text, tensors).get(ENCODER_FILES):
        raise ArtifactError(
            f"the titles in {config.at('tensors')} were cut into tokens by other files than the folder text.encoder "
            f"{config.text.encoder!r} now has: run `{TENSORS.made_by}` again"
        )


def _check_resources(config: Config) -> None:
    """A Ray of our own never grows: actors that do not fit into it would be waited for."""
    wanted = config.text.num_actors * config.text.cpus_per_actor
    if not os.environ.get("RAY_ADDRESS") and wanted > config.cpus:
        raise ConfigError(
            f"text.num_actors x text.cpus_per_actor is {wanted}, but cpus is {config.cpus}: "
            "lower the former or raise the latter"
        )


def _encode_all(path: Path, batches: list[pa.Table], offsets: IntArray, encoder: TextEncoder, config: Config) -> None:
    """Write the states of all texts to `path` as they come, in whatever order."""
    shape = (int(offsets[-1]), encoder.width)
    states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    seen = np.diff(offsets) == 0
    with log.bar(total=int((~seen).sum()), what=f"encode with {config.text.encoder}", unit="text") as bar:
        for number, values in _encoded(batches, encoder, config):
            assert not seen[number], f"text {number} was encoded twice"
            seen[number] = True
            states[offsets[number] : offsets[number + 1]] = values.reshape(-1, encoder.width)
            bar.update(1)
    assert seen.all(), f"{(~seen).sum()} texts were not encoded"
    states.flush()


def _encoded(
    batches: list[pa.Table], encoder: TextEncoder, config: Config
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """(text number, flat float16 states) of all texts of the batches."""
    for batch in (
        _here(batches, encoder, config.text.cpus_per_actor) if len(batches) <= FEW else _by_actors(batches, config)
    ):
        for number, raw in zip(batch["text"].to_pylist(), batch["states"].to_pylist(), strict=True):
            yield number, np.frombuffer(raw, dtype=np.float16)


def _here(batches: list[pa.Table], encoder: TextEncoder, threads: int) -> Iterator[pa.Table]:
    """In this process, by as many threads as an actor has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield from (_states(encoder, batch) for batch in batches)
    finally:
        torch.set_num_threads(before)


def _by_actors(batches: list[pa.Table], config: Config) -> Iterator[pa.Table]:
    """Through Ray Data."""
    text = config.text
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
