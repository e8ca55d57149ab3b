"""How long the stages of an answer take."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rec import tracing


class Stopwatch:
    """Milliseconds by stage; where the request is traced each stage is a span."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    @contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        """The time since the last lap is spent in `stage`."""
        with tracing.span(stage):
            yield
        now = time.perf_counter()
        self._laps[stage] = self._laps.get(stage, 0.0) + 1e3 * (now - self._last)
        self._last = now

    def milliseconds(self) -> Mapping[str, float]:
        """By stage, and `total`."""
        laps = {**self._laps, "total": 1e3 * (self._last - self._start)}
        return {stage: round(spent, 2) for stage, spent in laps.items()}
