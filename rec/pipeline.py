"""All stages in order, in one process, continuing after the last finished one.

Each stage decides by itself whether its output is already there (`rec.artifact.finished`), so a pipeline that was
killed at any moment is continued by starting it again and ends with the same bytes as an undisturbed run.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from rec.config import Config

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 0.5
"""How often memory is looked at; a peak shorter than this may be missed."""

Run = Callable[[Config], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its name, and its entry, which skips itself when its output is there."""

    name: str
    run: Run


class PeakMemory:
    """Highest sum of resident bytes over this process and all its descendants, sampled in a thread.

    Shared pages count once per process that maps them, so the figure is an upper bound.
    """

    def __init__(self) -> None:
        self.bytes = 0
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
        me = psutil.Process()
        while True:
            self.bytes = max(self.bytes, sum(map(_resident, [me, *me.children(recursive=True)])))
            if self._done.wait(SAMPLE_SECONDS):
                return


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def run(config: Config, stages: list[Stage]) -> dict[str, Any]:
    """Run `stages` in order; returns their results, seconds by stage and the peak memory in MiB.

    Raises what a stage raises; stages that finished before stay finished.
    """
    results: dict[str, Mapping[str, Any]] = {}
    seconds: dict[str, float] = {}
    with PeakMemory().watch() as peak:
        for number, stage in enumerate(stages, 1):
            log.info("stage %d/%d %s: start", number, len(stages), stage.name)
            started = time.monotonic()
            results[stage.name] = stage.run(config)
            seconds[stage.name] = round(time.monotonic() - started, 1)
            log.info(
                "stage %d/%d %s: %s", number, len(stages), stage.name, _line(results[stage.name], seconds[stage.name])
            )
    return {
        "results": results,
        "seconds": seconds,
        "skipped": [name for name, result in results.items() if result.get("skipped")],
        "peak_mib": round(peak.bytes / 2**20),
    }


def _line(result: Mapping[str, Any], seconds: float) -> str:
    counts = ", ".join(f"{name} {value:,}" for name, value in result.items() if name in ("rows", "rejected"))
    state = "was there already" if result.get("skipped") else f"done in {seconds:.1f} s"
    return f"{state}{', ' + counts if counts else ''}"
