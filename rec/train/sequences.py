"""Training sequences of the user tower: each user's training events in windows of what the tower reads.

A window of m events gives m positions: BOS predicts the first event, event t predicts event t + 1. The
context at a position is the text given at the event it predicts, the gap before it is known as well: both
are known at the moment of prediction.

A history longer than a window is cut from its end: every window begins with the last event of the one before,
which is its target and only read here. So each event is a target once, BOS only predicts a user's first event,
and memory is that of one batch however long a history is.
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
    """Windows over the histories of users, ascending; those of one user oldest first."""

    h: Histories
    users: Ints
    """User index of each window."""
    starts: Ints
    """First event of each window in the event arrays."""
    ends: Ints
    """Exclusive end of each window."""
    contexts: Ints
    """int64[E] row of the context text table of every event; 0 is no text."""
    counted: NDArray[np.bool_]
    """bool[E] whether the event may be a target of the loss."""

    @property
    def target_counts(self) -> Ints:
        """int64[N] how often each item is a target."""
        events, targets = self._events(np.arange(len(self.users)))
        return np.bincount(self.h.items[events[targets]], minlength=self.h.num_items).astype(np.int64)

    def _events(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """int64[T] events of the windows `rows`, one after the other, and whether each is a target there."""
        starts, counts = self.starts[rows], self.ends[rows] - self.starts[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        events = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + starts[owner]
        read_only = (events == starts[owner]) & (starts > self.h.offsets[self.users[rows]])[owner]
        return events, self.counted[events] & ~read_only

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
        flat, counted = self._events(rows)
        arrays = (inputs, self.h.items[where] * real, self.h.events[where] * real, gaps.astype(np.float32))
        return Batch(
            sequences=Sequences(*(torch.from_numpy(array) for array in arrays)),
            targets=torch.from_numpy(self.h.items[flat]),
            counted=torch.from_numpy(counted),
            contexts=torch.from_numpy(self.contexts[flat]),
            profiles=torch.from_numpy(self.h.profiles[self.users[rows]]),
        )


def windows(h: Histories, ends: Ints, history: int, texts: dict[str, int], *, exclude_seen: bool) -> Windows:
    """All windows of `history` + 1 events over `[offsets[u], ends[u])` that have a target.

    `texts` gives the row of each context text. With `exclude_seen`, an event on an item that the user had
    before is no target: such an item is never recommended.
    """
    events = np.maximum(ends - h.offsets[:-1], 0)
    number = np.where(events > 0, np.maximum(-(-(events - 1) // history), 1), 0)
    users = np.repeat(np.arange(len(number)), number)
    back = np.repeat(np.cumsum(number), number) - 1 - np.arange(len(users))  # windows between this and the last
    return _cut(h, users, ends[users] - back * history, history, texts, exclude_seen)


def last_windows(
    h: Histories, users: Ints, ends: Ints, history: int, texts: dict[str, int], *, exclude_seen: bool
) -> Windows:
    """Of each of the `users`, the window that ends at `ends`, int64 as many; otherwise as `windows`."""
    return _cut(h, users, ends, history, texts, exclude_seen)


def _cut(h: Histories, users: Ints, ends: Ints, history: int, texts: dict[str, int], exclude_seen: bool) -> Windows:
    """Windows that end at `ends`, but for those without a target."""
    contexts = np.fromiter((texts.get(text, 0) for text in h.contexts), np.int64, len(h.contexts))
    counted = first_time(h) if exclude_seen else np.ones(len(h.items), bool)
    starts = np.maximum(h.offsets[users], ends - history - 1)
    before = np.concatenate([[0], np.cumsum(counted)])
    kept = before[ends] > before[starts + (starts > h.offsets[users])]
    return Windows(h, users[kept], starts[kept], ends[kept], contexts, counted)


def first_time(h: Histories) -> NDArray[np.bool_]:
    """bool[E] whether the event is the user's first on its item."""
    user = np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))
    first = np.zeros(len(h.items), bool)
    first[np.unique(user * h.num_items + h.items, return_index=True)[1]] = True
    return first
