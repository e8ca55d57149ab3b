"""Questions to the fit head: an event in a size, with what its user had on before it.

Point-in-time: the past of a question is the user's events in sizes at earlier moments alone, never the event itself or
one of the same moment, so that no answer is in what is asked.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rec import worn
from rec.histories import Histories
from rec.models.size_table import Encoded, SizeTable
from rec.worn import Worn

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Leave-one-out over the events with size and feedback; a user with one such event only trains."""

    train: Ints
    """Events of the training questions."""
    validation: Ints
    """The second last event of each user with two or more: these choose the epoch."""
    test: Ints
    """The last one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Q questions; parts of the past are [Q, H], with item 0 at padding."""

    profiles: Tensor  # float32[Q, P], nan where missing
    items: Tensor
    name: Tensor
    pair: Tensor
    z: Tensor
    past_items: Tensor
    past_name: Tensor
    past_pair: Tensor
    past_z: Tensor
    past_fits: Tensor
    past_known: Tensor
    written: Tensor
    """int64[Q] positions of the sizes in the size table's `written`; -1 for none."""
    fits: Tensor
    """int64[Q] the answers, 1-based."""


@dataclass(frozen=True, slots=True)
class Questions:
    """All events as questions."""

    h: Histories
    worn: Worn
    encoded: Encoded
    """The sizes of all E events."""
    written: Ints
    """int64[E], see `Batch`."""
    sized: Ints
    """Events that are in a size, ascending."""
    begins: Ints
    ends: Ints
    """int64[E] range of each event's past in `sized`."""
    history: int
    """H, the last events of it that are read."""

    def batch(self, events: Ints) -> Batch:
        """The questions of `events` int64[Q]."""
        places = self.ends[events, None] - 1 - np.arange(self.history)  # int64[Q, H], latest first
        known = places >= self.begins[events, None]
        at = np.where(known, self.sized[np.maximum(places, 0)], 0) if len(self.sized) else np.zeros_like(places)
        users = np.searchsorted(self.h.offsets, events, side="right") - 1
        arrays = (
            self.h.profiles[users], self.h.items[events], self.encoded.name[events], self.encoded.pair[events],
            self.encoded.z[events], np.where(known, self.h.items[at], 0), self.encoded.name[at], self.encoded.pair[at],
            self.encoded.z[at], np.where(known, self.worn.fits[at], 0), known, self.written[events],
            self.worn.fits[events],
        )  # fmt: skip
        return Batch(*(torch.from_numpy(array) for array in arrays))


def split(h: Histories, told: NDArray[np.bool_]) -> Split:
    """Leave-one-out over the events of `h` that are `told` (bool[E])."""
    events = np.flatnonzero(told)
    owners = np.searchsorted(h.offsets, events, side="right") - 1
    last = np.append(owners[1:] != owners[:-1], True) if len(events) else np.zeros(0, bool)
    several = np.bincount(owners, minlength=1)[owners] >= 2
    test = last & several
    validation = np.append(test, False)[1:]
    return Split(events[~test & ~validation], events[validation], events[test])


def build(h: Histories, of: Worn, sizes: SizeTable, kinds: Ints, history: int) -> Questions:
    """Questions of all events; `kinds` int64[N] are the items' garment kinds, `history` is H."""
    encoded = sizes.encode(kinds[h.items], of.sizes, of.numbers)
    sized = np.flatnonzero([size != "" for size in of.sizes])
    ends = np.searchsorted(sized, worn.earlier(h, np.arange(len(h.items))))
    begins = np.searchsorted(sized, np.repeat(h.offsets[:-1], np.diff(h.offsets)))
    written = np.full(len(h.items), -1)
    written[sized] = sizes.places([of.sizes[event] for event in sized])
    return Questions(h, of, encoded, written, sized, begins, ends, history)
