"""Weight transfer: the ranker's STD and RE tables start from the item tower's, as they are or projected to the field
width.

Principal components of the trained rows keep as much of their geometry as `dim` columns can; one common
scale then gives them the spread that a random start has, so the ranker trains alike with and without.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What became of one table's rows; `transfer.json` of the ranker artifact holds one per table."""

    table: str
    rows: int
    """Rows of the ranker's table, padding included."""
    copied: int
    """Rows that start from the item tower."""
    missing: int
    """Rows that the item tower does not have; they start at random."""
    frozen: int
    """Copied rows that no training sample has: they leave training as they came, to the bit."""
    variance_kept: float
    """Share of the item tower rows' variance that is kept; 1 of a copy."""

    def to_json(self) -> dict[str, Any]:
        """JSON value of the report."""
        return asdict(self)


def project(weight: NDArray[np.float32], dim: int, std: float) -> tuple[NDArray[np.float32], float]:
    """Rows float32[n, d] of a trained table as float32[n, dim] with standard deviation `std`, and the variance kept.

    Row 0 is padding: it counts for nothing and comes out as zero. Signs are fixed (the largest entry of each
    component is positive), so the same table always gives the same rows. Columns past d are zero.
    """
    rows = weight[1:].astype(np.float64)
    projected = np.zeros((len(weight), dim), np.float32)
    centred = rows - rows.mean(axis=0) if len(rows) else rows
    variance = float((centred**2).sum())
    if variance == 0:
        return projected, 0.0
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    components = components[:dim]
    signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(axis=1)])
    values = centred @ (components * signs[:, None]).T
    values *= std * np.sqrt(len(values) * dim) / np.linalg.norm(values)
    projected[1:, : values.shape[1]] = values
    return projected, float((singular[:dim] ** 2).sum() / variance)


def transfer(
    table: str,
    start: NDArray[np.float32],
    source: NDArray[np.float32],
    occurs: NDArray[np.bool_],
    std: float,
    mode: Literal["copy", "project"],
) -> tuple[NDArray[np.float32], TransferReport]:
    """The table float32[rows, dim] that training starts from, and its report.

    `start` is the random table, `source` float32[n, d] the item tower's rows of the same ids, `occurs`
    bool[rows] which rows any training sample has. `copy` takes rows as they are and needs d = dim, `project` gives
    them `dim` columns and the spread `std`.
    """
    rows, kept = (source, 1.0) if mode == "copy" else project(source, start.shape[1], std)
    count = min(len(start), len(source))
    begun = start.copy()
    begun[1:count] = rows[1:count]
    frozen = int((~occurs[1:count]).sum())
    report = TransferReport(table, len(start), max(count - 1, 0), len(start) - max(count, 1), frozen, kept)
    return begun, report
