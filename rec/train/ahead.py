"""Batches made while the one before is trained on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
T = TypeVar("T")


def made(make: Callable[[A], T], given: Iterable[A], device: torch.device) -> Iterator[T]:
    """`make` of each, in order; for a GPU one ahead, in a thread. On a CPU the step itself takes all the threads.

    What `make` raises, the iterator raises in its place.
    """
    if device.type == "cpu":
        yield from map(make, given)
        return
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for each in given:
            ready, coming = coming, thread.submit(make, each)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
