"""Training sequences of the user tower: each user's last training events as one window.

A window of m events gives m positions: BOS predicts the first event, event t predicts event t + 1. The
context at a position is the text given at the event it predicts, the gap before it is known as well: both
are known at the moment of prediction.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rec.histories import Histories
from rec.models.user_tower import Sequences

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows with T positions in all."""

    sequences: Sequences
    targets: Tensor
    """int64[T] item row of the event that each position predicts."""
    counted: Tensor
    """bool[T] whether the position is part of the loss."""
    contexts: Tensor
    """int64[T] row of the context text table; 0 is no text."""
    profiles: Tensor
    """float32[B, P]"""

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        tensors = (self.targets, self.counted, self.contexts, self.profiles)
        return Batch(self.sequences.to(device), *(x.to(device) for x in tensors))


@dataclass(frozen=True, slots=True)
class Windows:
    """The training windows of all users that have one."""

    h: Histories
    users: Ints
    """User indices."""
    starts: Ints
    """First event of each window in the event arrays."""
    ends: Ints
    """Exclusive end of each window."""
    contexts: Ints
    """int64[E] row of the context text table of every event; 0 is no text."""
    counted: NDArray[np.bool_]
    """bool[E] whether the event is a target of the loss."""

    @property
    def target_counts(self) -> Ints:
        """int64[N] how often each item is a target."""
        inside = np.concatenate([np.arange(s, e) for s, e in zip(self.starts, self.ends, strict=True)])
        return np.bincount(self.h.items[inside[self.counted[inside]]], minlength=self.h.num_items).astype(np.int64)

    def batch(self, rows: Ints) -> Batch:
        """The windows `rows`, padded on the right."""
        starts, counts = self.starts[rows], self.ends[rows] - self.starts[rows]
        inputs = counts - 1
        width = int(inputs.max(initial=0))
        column = np.arange(width)
        real = column < inputs[:, None]  # bool[B, L]
        where = np.where(real, starts[:, None] + column, 0)
        following = np.where(real, where + 1, 0)
        gaps = (self.h.at[following] - self.h.at[where]) / 1e6
        owner = np.repeat(np.arange(len(rows)), counts)
        flat = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + starts[owner]
        arrays = (inputs, self.h.items[where] * real, self.h.events[where] * real, gaps.astype(np.float32))
        return Batch(
            sequences=Sequences(*(torch.from_numpy(array) for array in arrays)),
            targets=torch.from_numpy(self.h.items[flat]),
            counted=torch.from_numpy(self.counted[flat]),
            contexts=torch.from_numpy(self.contexts[flat]),
            profiles=torch.from_numpy(self.h.profiles[self.users[rows]]),
        )


def windows(h: Histories, ends: Ints, history: int, texts: dict[str, int], *, exclude_seen: bool) -> Windows:
    """One window per user with a target in `[offsets[u], ends[u])`: the last `history` + 1 events of it.

    `texts` gives the row of each context text. With `exclude_seen`, an event on an item that the user had
    before is no target: such an item is never recommended.
    """
    contexts = np.fromiter((texts.get(text, 0) for text in h.contexts), np.int64, len(h.contexts))
    counted = first_time(h) if exclude_seen else np.ones(len(h.items), bool)
    starts = np.maximum(h.offsets[:-1], ends - history - 1)
    before = np.concatenate([[0], np.cumsum(counted)])
    users = np.flatnonzero(before[np.maximum(ends, starts)] > before[starts])
    return Windows(h, users, starts[users], ends[users], contexts, counted)


def first_time(h: Histories) -> NDArray[np.bool_]:
    """bool[E] whether the event is the user's first on its item."""
    user = np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))
    first = np.zeros(len(h.items), bool)
    first[np.unique(user * h.num_items + h.items, return_index=True)[1]] = True
    return first
