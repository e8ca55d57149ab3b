"""Arrays that fill up block by block in files: what a killed run made, the next one does not make again.

    values.npy  the array
    done.npy    bool[N]: which of the N units (rows, or texts of many rows) are there
    begun.npy   bool[N]: which of them were kept from before; written last when the array is begun

A block's values are on disk before it is marked as done, so neither a killed process nor a lost machine leaves
a mark without values. What is kept is decided once: a killed run cuts the same blocks and ends with the same bytes.
The disk gives all room at the beginning: a mapped file that it has no room for kills the process that writes there.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rec import artifact
from rec.errors import ArtifactError

VALUES, DONE, BEGUN = "values.npy", "done.npy", "begun.npy"

Indices = NDArray[np.int64]
Piece = tuple[Indices, Indices, NDArray[Any]]
"""Units, where their values lie in the array, and these values."""


class PartialArray:
    """The array that `begin` made in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / VALUES
        self.values: NDArray[Any] = np.load(self.path, mmap_mode="r+", allow_pickle=False)
        self.kept: NDArray[np.bool_] = np.load(folder / BEGUN, allow_pickle=False)
        self._done: NDArray[np.bool_] = np.load(folder / DONE, mmap_mode="r+", allow_pickle=False)

    def waiting(self, blocks: Sequence[Indices]) -> list[int]:
        """Numbers of the blocks of units of which not all are done."""
        return [number for number, units in enumerate(blocks) if not self._done[units].all()]

    def put(self, units: Indices, where: Indices, values: NDArray[Any]) -> None:
        """Write the values of a block of units, and mark it as done."""
        self.values[where] = values
        _flush(self.values)
        self._done[units] = True

    def remove(self) -> None:
        """Remove the folder; `values` is gone with it."""
        del self.values, self._done  # NFS removes no folder with a file that is mapped
        shutil.rmtree(self.path.parent)


def folder(runs: Path, work: Mapping[str, Any]) -> Path:
    """Where in `runs` the array of the artifact that `work` describes (`artifact.write`) is made.

    What killed runs of other work of its kind left there is removed.
    """
    name = artifact.run_name(**work)
    artifact.sweep_runs(runs, work["kind"], keep=(name,))
    return runs / name


def begun(folder: Path) -> bool:
    """Whether a killed run left its array there."""
    return (folder / BEGUN).exists()


def begin(folder: Path, shape: tuple[int, ...], dtype: DTypeLike, units: int, good: Iterable[Piece]) -> None:
    """Make the files of an array with `units` units, of which those that `good` gives are kept.

    Raises ArtifactError where the disk has no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = np.zeros(units, dtype=np.bool_)
    made = np.lib.format.open_memmap(folder / VALUES, mode="w+", dtype=dtype, shape=shape)
    _reserve(folder / VALUES)
    for some, where, values in good:
        made[where] = values
        kept[some] = True
    _flush(made)
    _save(folder / DONE, kept)
    _save(folder / BEGUN, kept)


def _reserve(path: Path) -> None:
    """Have the disk give a sparse file all its room; where system or file system cannot, that shows only later."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return
            raise ArtifactError(
                f"the disk of {path} has no room for its {size / 1e9:.2f} GB ({error.strerror}): free some, or move "
                "the store to a larger disk, and run again"
            ) from error


def _flush(mapped: NDArray[Any]) -> None:
    assert isinstance(mapped, np.memmap)
    mapped.flush()


def _save(path: Path, array: NDArray[np.bool_]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
