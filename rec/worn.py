"""The sizes of all events and how they fitted, beside the histories, for the fit head alone.

They are kept apart from `Histories` on purpose: what size an event is in says which garment it is of, and is not known
before it. Nothing that retrieves or ranks reads this module (`tests/project/test_layers.py`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec import dataset, histories
from rec.histories import Histories
from rec.schema import INTERACTIONS
from rec.sizes import FITS


@dataclass(frozen=True, slots=True)
class Worn:
    """Parallel to the event arrays of the histories."""

    sizes: list[str]
    """E sizes as the shop writes them; "" for none."""
    numbers: NDArray[np.float32]
    """float32[E] their numeric reading, nan where there is none."""
    fits: NDArray[np.int64]
    """int64[E] 1-based positions in `FITS`; 0 for no feedback."""

    @property
    def told(self) -> NDArray[np.bool_]:
        """bool[E] whether size and fit are both known."""
        return np.array([size != "" for size in self.sizes], bool) & (self.fits > 0)


def load(root: Path) -> Worn:
    """Those of the events dataset under `root`, in the order of `histories.load`."""
    rows = histories.event_rows(root)
    table = dataset.read(root / "events", INTERACTIONS, ["size", "size_number", "fit"]).take(pa.array(rows))
    place = {name: number for number, name in enumerate(FITS, 1)}
    return Worn(
        sizes=[size or "" for size in table.column("size").to_pylist()],
        numbers=table.column("size_number").to_numpy().astype(np.float32),
        fits=np.array([place.get(fit, 0) for fit in table.column("fit").to_pylist()], np.int64),
    )


def earlier(h: Histories, events: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[Q] exclusive end, in the event arrays, of what the users of `events` int64[Q] did before their moment.

    Events of one moment, such as rentals reviewed on one day, are not before each other: how one of them fitted is no
    help for the others.
    """
    ends = np.arange(len(h.items))
    starts = np.repeat(h.offsets[:-1], np.diff(h.offsets))
    fresh = np.insert(h.at[1:] != h.at[:-1], 0, True) | (ends == starts) if len(ends) else np.zeros(0, bool)
    return np.maximum.accumulate(np.where(fresh, ends, 0))[events]
