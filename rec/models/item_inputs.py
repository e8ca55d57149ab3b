"""Inputs of the item tower: ragged arrays of all items in memory, padded batches of some.

The text states stay on disk (memory-mapped, shared by all processes of a machine) and are read per batch. A tower
that holds the whole text encoder gets token ids instead, one that reads no titles no states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rec import artifact, dataset
from rec.errors import ArtifactError
from rec.models import encoder_files, packing
from rec.schema import TENSORS

TEXT_STATES = "text_states"
TEXT_STATES_VERSION = 1
LAYERS_ABOVE = "layers_above"
"""What a manifest calls the layers of the encoder that its states have not gone through; left out where none."""

_BLOCK_TEXTS = 1_024
"""Texts whose states are in memory at once."""

IntArray = NDArray[np.int64]


def text_states_manifest(folder: Path) -> artifact.Manifest:
    """The checked manifest of the text states at `folder`."""
    return artifact.read(folder, kind=TEXT_STATES, version=TEXT_STATES_VERSION, made_by="python jobs/encode.py")


def check_texts(
    tensors: Path, text_states: Path, *, encoder: str, layers_above: int, reader: str, files: str | None
) -> None:
    """Raise ArtifactError when token ids or states are not those of `encoder`, without its last `layers_above` layers.

    `files` is the digest of its folder's files that `reader` wants, None where it has no folder or none is noted;
    `reader` is who needs all that so, for the error.
    """
    cut_for = dataset.read_manifest(tensors, TENSORS).config["text"]
    if cut_for["encoder"] != encoder:
        raise ArtifactError(
            f"the titles in {tensors} were cut into tokens for text.encoder {cut_for['encoder']!r}, but {reader} reads "
            f"those of {encoder!r}: run `{TENSORS.made_by}` and what follows again, all with the same options"
        )
    states = text_states_manifest(text_states)
    found = states.config["encoder"], states.config.get(LAYERS_ABOVE, 0)
    if found != (encoder, layers_above):
        raise ArtifactError(
            f"{text_states} holds {_said(*found)}, but {reader} reads {_said(encoder, layers_above)}: run "
            "`python jobs/encode.py` and `python jobs/pretrain.py` again, both with the same options"
        )
    remedy = f"run `{TENSORS.made_by}` and what follows again"
    for name, made_with in ((tensors, cut_for), (text_states, states.config)):
        encoder_files.check(name, encoder_files.stated(made_with), files, encoder=encoder, reader=reader, remedy=remedy)


def _said(encoder: str, layers_above: int) -> str:
    below = f", {layers_above} layers below its last" if layers_above else ""
    return f"states of text.encoder {encoder!r}{below}"


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """Padded inputs of B rows. Id 0 is padding and hidden alike: the tower cannot see it.

    Row i is product i % P: a product may stand there several times, as so many views of it (`ItemBatch.views`),
    that share its title, whose states are the one large thing here.
    """

    std_key: torch.Tensor  # int64[B, S]
    std_id: torch.Tensor  # int64[B, S]
    re_key: torch.Tensor  # int64[B, R]
    re_id: torch.Tensor  # int64[B, R]
    title: torch.Tensor  # float32[P, T, text_width] states, or int64[P, T] token ids; [P, 0, text_width]: not read
    title_mask: torch.Tensor  # bool[B, T], True where there is a token, also where it is not read
    title_count: int | None = None
    """Tokens that go through layers of the text encoder, on a GPU, which need not be asked then."""

    def __len__(self) -> int:
        return self.std_id.shape[0]

    def to(self, device: torch.device) -> "ItemBatch":
        """The batch on `device`, see `moved`."""
        return ItemBatch(
            std_key=moved(self.std_key, device),
            std_id=moved(self.std_id, device),
            re_key=moved(self.re_key, device),
            re_id=moved(self.re_id, device),
            title=moved(self.title, device),
            title_mask=moved(self.title_mask, device),
            title_count=int(packing.seen(self.title_mask).sum()) if device.type == "cuda" else None,
        )

    def views(self, *, std: torch.Tensor, re: torch.Tensor, title: torch.Tensor) -> "ItemBatch":
        """V views of each product without what the masks hide: bool[V, B, S], bool[V, B, R] and bool[V, B, T]."""
        count = len(std)
        return ItemBatch(
            std_key=self.std_key.repeat(count, 1),
            std_id=self.std_id.repeat(count, 1).masked_fill(std.flatten(0, 1), 0),
            re_key=self.re_key.repeat(count, 1),
            re_id=self.re_id.repeat(count, 1).masked_fill(re.flatten(0, 1), 0),
            title=self.title,
            title_mask=self.title_mask.repeat(count, 1) & ~title.flatten(0, 1),
        )


def moved(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`part` on `device`; the copy to a GPU queues behind its work instead of waiting for it."""
    gpu = device.type == "cuda"
    return (part.pin_memory() if gpu else part).to(device, non_blocking=gpu)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of integers, one per item, end to end."""

    values: IntArray  # int64[total]
    offsets: IntArray  # int64[N + 1]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Ragged":
        """From an Arrow column of lists without nulls."""
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), column.combine_chunks().value_lengths().to_numpy()])
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        values = np.concatenate(flat) if flat else np.zeros(0)
        return cls(values.astype(np.int64), np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> "Ragged":
        """From Python lists."""
        values = np.fromiter(chain.from_iterable(lists), np.int64)
        return cls(values, np.cumsum([0, *map(len, lists)], dtype=np.int64))

    def take(self, rows: IntArray) -> "Ragged":
        """The lists of `rows`."""
        where, _ = positions(self.offsets, rows)
        return Ragged(self.values[where], np.concatenate([[0], np.cumsum(np.diff(self.offsets)[rows])]))

    def padded(self, rows: IntArray) -> IntArray:
        """int64[len(rows), longest], 0 behind the end of each list."""
        where, mask = positions(self.offsets, rows)
        out = np.zeros(mask.shape, dtype=np.int64)
        out[mask] = self.values[where]
        return out


def positions(offsets: IntArray, rows: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Where the values of `rows` lie in the flat array, row after row, and the mask bool[B, longest] they fill."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    return (starts[:, None] + np.arange(mask.shape[1]))[mask], mask


class ItemInputs:
    """All items of a catalogue, in item-row order."""

    def __init__(
        self,
        *,
        std_key: Ragged,
        std_id: Ragged,
        re_key: Ragged,
        re_id: Ragged,
        groups: IntArray,
        text_of_item: IntArray,
        state_offsets: IntArray,
        states: NDArray[np.float16],
        title_id: Ragged | None = None,
        titles: bool = True,
    ) -> None:
        """With `title_id`, a batch has these token ids for a title, and its states only make rows of RE tokens.

        Without `titles`, a batch has no states either: for a tower that does not read them.
        """
        self.groups = groups
        """int64[N]: content group; items of one group are never each other's negatives."""
        self.text_width: int = states.shape[1]
        self._ids = (std_key, std_id, re_key, re_id)
        self._text_of_item = text_of_item
        self._state_offsets = state_offsets
        self._states = states
        self._title_id = title_id
        self._titles = titles

    @classmethod
    def load(cls, tensors: Path, text_states: Path, *, ids: bool = False, titles: bool = True) -> "ItemInputs":
        """Read the tensors dataset, token ids of titles if `ids`, and memory-map the text states.

        Without `titles` they are in no batch. What a tower reads is `rec.models.item_tower.inputs_of`.
        """
        text_states_manifest(text_states)
        columns = ["group", "std_key", "std_id", "re_key", "re_id", *(["title_id"] if ids else [])]
        table = dataset.read(tensors, TENSORS, columns)
        return cls(
            std_key=Ragged.of(table["std_key"]),
            std_id=Ragged.of(table["std_id"]),
            re_key=Ragged.of(table["re_key"]),
            re_id=Ragged.of(table["re_id"]),
            groups=table["group"].to_numpy().astype(np.int64),
            text_of_item=np.load(text_states / "text_of_item.npy", allow_pickle=False),
            state_offsets=np.load(text_states / "offsets.npy", allow_pickle=False),
            states=np.load(text_states / "states.npy", mmap_mode="r", allow_pickle=False),
            title_id=Ragged.of(table["title_id"]) if ids else None,
            titles=titles,
        )

    def __len__(self) -> int:
        return len(self.groups)

    def first_std(self, key: int, unknown: int) -> IntArray:
        """int64[N]: the first STD id of each item under a key, 0 for none and for the `unknown` one of the key."""
        keys, ids = self._ids[0], self._ids[1]
        item = np.repeat(np.arange(len(self)), np.diff(keys.offsets))
        found = np.zeros(len(self), dtype=np.int64)
        of_key = keys.values == key
        rows, first = np.unique(item[of_key], return_index=True)
        found[rows] = ids.values[of_key][first]
        found[found == unknown] = 0
        return found

    def batch(self, rows: IntArray) -> ItemBatch:
        """The padded inputs of items `rows`."""
        std_key, std_id, re_key, re_id = (torch.from_numpy(ids.padded(rows)) for ids in self._ids)
        if self._title_id is not None:
            _, mask = positions(self._title_id.offsets, rows)
            ids = torch.from_numpy(self._title_id.padded(rows))  # int64[P, T]
            return ItemBatch(std_key, std_id, re_key, re_id, ids, torch.from_numpy(mask))
        where, mask = positions(self._state_offsets, self._text_of_item[rows])
        title_mask = torch.from_numpy(mask)
        if not self._titles:
            return ItemBatch(std_key, std_id, re_key, re_id, torch.zeros((len(rows), 0, self.text_width)), title_mask)
        title = torch.zeros((*mask.shape, self.text_width))
        title[title_mask] = torch.from_numpy(self._states[where]).float()
        return ItemBatch(std_key, std_id, re_key, re_id, title, title_mask)

    def retold(
        self, rows: IntArray, ids: Sequence[Sequence[int]], states: Sequence[NDArray[np.float16]]
    ) -> "ItemInputs":
        """The items `rows` with other texts: their token ids, and the states that a batch has for these."""
        std_key, std_id, re_key, re_id = (column.take(rows) for column in self._ids)
        return ItemInputs(
            std_key=std_key,
            std_id=std_id,
            re_key=re_key,
            re_id=re_id,
            groups=self.groups[rows],
            text_of_item=np.arange(len(rows)),
            state_offsets=np.cumsum([0, *map(len, states)], dtype=np.int64),
            states=np.concatenate([np.empty((0, self.text_width), np.float16), *states]),
            title_id=None if self._title_id is None else Ragged.from_lists(ids),
            titles=self._titles,
        )

    def texts_of_tokens(self, num_tokens: int) -> tuple[NDArray[np.float32], IntArray]:
        """What the text encoder says of the items that carry each RE token, and how many items that are.

        float32[num_tokens, text_width], the mean of their texts' vectors, and int64[num_tokens]. A token that no item
        carries has the mean of all items.
        """
        vectors = unit(self.text_means())
        means, carried = self.means_by_id("re", num_tokens, vectors)
        means[carried == 0] = vectors[self._text_of_item].mean(0) if len(self) else 0.0
        return means, carried

    def means_by_id(
        self, table: Literal["std", "re"], count: int, texts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], IntArray]:
        """Mean over the items that carry each id of what `texts` float32[D, k] has for their text, and how many.

        float32[count, k], zero where no item does, and int64[count].
        """
        ids, items = self._ids[3 if table == "re" else 1], len(self)
        owner = np.repeat(np.arange(items), np.diff(ids.offsets))
        id_, item = np.divmod(np.unique(ids.values * items + owner), max(items, 1))  # once under several keys
        carried = np.bincount(id_, minlength=count)
        places = torch.from_numpy(np.stack([id_, self._text_of_item[item]]))
        told = torch.sparse_coo_tensor(places, torch.ones(len(id_)), (count, len(texts)), check_invariants=True)
        sums: NDArray[np.float32] = (told @ torch.from_numpy(texts)).numpy()
        sums /= np.maximum(carried, 1)[:, None]
        return sums, carried

    @property
    def text_of_item(self) -> IntArray:
        """int64[N]: which of the D texts is an item's."""
        return self._text_of_item

    def text_vectors(self) -> NDArray[np.float32]:
        """Each item's text as one unit vector, as `TextEncoder.embed` does: float32[N, text_width]; blank is zero."""
        return unit(self.text_means())[self._text_of_item]

    def text_means(self) -> NDArray[np.float32]:
        """Mean of the states of each text: float32[D, text_width]; blank is zero."""
        offsets = self._state_offsets
        means = np.zeros((len(offsets) - 1, self.text_width), dtype=np.float32)
        for start in range(0, len(means), _BLOCK_TEXTS):
            bounds = offsets[start : start + _BLOCK_TEXTS + 1]
            lengths = np.diff(bounds)
            said = np.flatnonzero(lengths)
            if len(said):
                states = self._states[bounds[0] : bounds[-1]].astype(np.float32)
                sums = np.add.reduceat(states, bounds[said] - bounds[0])
                means[start + said] = sums / lengths[said, None]
        return means


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows float32[n, w] at length 1; a zero row stays zero."""
    made: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return made
