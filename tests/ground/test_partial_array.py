"""Arrays in files: what is done survives the process that did it."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rec import partial_array
from rec.errors import ArtifactError
from rec.partial_array import PartialArray

WORK: dict[str, Any] = {"kind": "squares", "version": 1, "inputs": {}, "config": {}}
BLOCKS = [np.array([1, 2]), np.array([4, 5])]

KILLED_AFTER_A_BLOCK = """
import os, signal, sys
from pathlib import Path
import numpy as np
from rec.partial_array import PartialArray

array = PartialArray(Path(sys.argv[1]))
units = np.array([4, 5])
array.put(units, units, units ** 2)
array.values[2] = 99  # half of a block: it counts for nothing
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """An array of six squares, of which two are kept."""
    folder = partial_array.folder(tmp_path / "runs", WORK)
    assert not partial_array.begun(folder)
    kept = np.array([0, 3])
    partial_array.begin(folder, (6,), np.int64, 6, [(kept, kept, kept**2)])
    return folder


def test_what_a_killed_process_finished_is_there_and_the_rest_waits(begun: Path) -> None:
    array = PartialArray(begun)
    assert array.kept.tolist() == [True, False, False, True, False, False]
    assert array.waiting(BLOCKS) == [0, 1]
    ended = subprocess.run([sys.executable, "-c", KILLED_AFTER_A_BLOCK, str(begun)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert partial_array.begun(partial_array.folder(begun.parent, WORK))
    array = PartialArray(begun)
    assert array.waiting(BLOCKS) == [0]
    array.put(BLOCKS[0], BLOCKS[0], BLOCKS[0] ** 2)
    assert array.waiting(BLOCKS) == []
    assert array.values.tolist() == [0, 1, 4, 9, 16, 25]
    assert array.kept.sum() == 2, "what was done since is not kept from before"
    array.remove()
    assert not begun.exists()


def test_values_are_on_disk_before_they_are_marked(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lost machine keeps: a kill alone leaves what the system has in memory."""
    array, units = PartialArray(begun), BLOCKS[0]
    flush, seen = partial_array._flush, []

    def watched(mapped: np.memmap) -> None:
        seen.append((mapped[units].tolist(), np.load(begun / partial_array.DONE)[units].tolist()))
        flush(mapped)

    monkeypatch.setattr(partial_array, "_flush", watched)
    array.put(units, units, units**2)
    assert seen == [([1, 4], [False, False])]
    assert array.waiting(BLOCKS) == [1]


def test_the_beginning_has_the_room_of_the_whole_or_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial_array.begin(tmp_path / "large", (1_000, 128), np.float32, 1_000, [])
    file = (tmp_path / "large" / partial_array.VALUES).stat()
    assert file.st_blocks * 512 >= file.st_size, "not sparse"

    def refuses(number: int) -> Callable[..., None]:
        def fallocate(*asked: int) -> None:
            raise OSError(number, os.strerror(number))

        return fallocate

    monkeypatch.setattr(os, "posix_fallocate", refuses(errno.ENOSPC))
    with pytest.raises(
        ArtifactError, match=r"values\.npy has no room for its 0\.00 GB \(No space left on device\): free"
    ):
        partial_array.begin(tmp_path / "full", (6,), np.int64, 6, [])
    assert not partial_array.begun(tmp_path / "full")
    monkeypatch.setattr(os, "posix_fallocate", refuses(errno.EOPNOTSUPP))
    partial_array.begin(tmp_path / "odd", (6,), np.int64, 6, [])
    assert PartialArray(tmp_path / "odd").values.tolist() == [0] * 6


def test_an_array_whose_beginning_was_killed_begins_again(begun: Path) -> None:
    (begun / partial_array.BEGUN).unlink()
    assert not partial_array.begun(begun)
    partial_array.begin(begun, (6,), np.int64, 6, [])
    assert PartialArray(begun).values.tolist() == [0] * 6
    assert PartialArray(begun).waiting([np.arange(6)]) == [0]


def test_only_arrays_of_the_same_kind_and_other_work_are_removed(begun: Path) -> None:
    other = begun.parent / "item_tower-0123"
    other.mkdir()
    changed = partial_array.folder(begun.parent, {**WORK, "inputs": {"tensors": "another"}})
    assert changed != begun
    assert not begun.exists()
    assert other.exists()


def test_an_empty_array_has_nothing_to_do(tmp_path: Path) -> None:
    partial_array.begin(tmp_path, (0, 384), np.float16, 0, [])
    array = PartialArray(tmp_path)
    assert array.values.shape == (0, 384)
    assert array.waiting([]) == []
