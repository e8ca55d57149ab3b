"""Peak memory of a process and its descendants."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

SAMPLE_SECONDS = 0.5
"""How often memory is looked at; a peak shorter than this may be missed."""


class PeakMemory:
    """Highest sum of resident bytes over a process and all its descendants, sampled in a thread.

    Shared pages count once per process that maps them, so the figure is an upper bound.
    """

    def __init__(self, pid: int | None = None) -> None:
        """`pid`: of the process, this one when left out."""
        self.bytes = 0
        self._root = psutil.Process(pid)
        self._done = threading.Event()

    @contextmanager
    def watch(self) -> Iterator["PeakMemory"]:
        """Sample until the block ends."""
        thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()
            thread.join()

    def _sample(self) -> None:
        while True:
            self.bytes = max(self.bytes, sum(map(_resident, self._tree())))
            if self._done.wait(SAMPLE_SECONDS):
                return

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:  # it has ended
            return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
