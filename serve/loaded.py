"""Parts of bundles in the memory of one replica: the active bundle's, and during a switch the next one's."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from rec import bundle, postgres
from rec.bundle import Bundle
from rec.config import Index
from rec.index import promote
from rec.index.connections import Connections

T = TypeVar("T")

KEPT = 2
"""Bundles in memory at once."""


def connections(store: str, *, size: int) -> Connections:
    """Connections to the store's database, with the search settings of the active bundle."""
    url = postgres.url(store)
    with postgres.connect(url) as connection:
        index: Index = bundle.read(store, promote.active(connection)).config.index
    return Connections(url, index, size=size)


def active(pool: Connections) -> str:
    """Id of the active bundle."""
    with pool.use() as connection:
        return promote.active(connection)


class Loaded(Generic[T]):
    """What `build` makes of a bundle, by bundle id. An id that the store does not have is refused."""

    def __init__(self, store: str, build: Callable[[Bundle], T]) -> None:
        self._store = store
        self._build = build
        self._parts: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> T:
        """The part of bundle `name`, loaded and verified if need be. Raises ArtifactError when it cannot be."""
        found = self._parts.get(name)
        if found is None:
            with self._lock:
                found = self._parts.get(name)
                if found is None:
                    opened = bundle.read(self._store, name)
                    bundle.verify(opened)
                    found = self._parts[name] = self._build(opened)
                    while len(self._parts) > KEPT:
                        self._parts.popitem(last=False)
        return found


def store_folder() -> str:
    """The store's absolute path: REC_STORE, by default `.rec` in the working directory."""
    return os.path.abspath(os.environ.get("REC_STORE", ".rec"))
