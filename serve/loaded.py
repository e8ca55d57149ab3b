"""Parts of bundles in the memory of one replica: the active one's, and during a switch or an experiment the other's."""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rec import bundle, postgres
from rec.bundle import Bundle
from rec.errors import RecError
from rec.index import experiments, promote
from rec.index.connections import Connections
from rec.index.experiments import Experiment

log = logging.getLogger("ray.serve")

T = TypeVar("T")

KEPT = 2
"""Bundles in memory at once."""
FOLLOW_S = 2.0
"""How often a replica looks for the active bundle."""


def connections(store: str, *, size: int) -> Connections:
    """Connections to the store's database."""
    return Connections(postgres.url(store, create=False), size=size)


def active(pool: Connections) -> str:
    """Id of the active bundle."""
    with pool.use() as connection:
        return promote.active(connection)


def serving(pool: Connections) -> list[str]:
    """Ids of the active bundle and of the one that is tried beside it."""
    with pool.use() as connection:
        return promote.serving(connection)


def experiment(pool: Connections) -> Experiment | None:
    """The experiment that runs."""
    with pool.use() as connection:
        return experiments.running(connection)


def states(pool: Connections) -> dict[str, Any]:
    """The `active` bundle, the `previous` one, the `experiment`, and all `known` to the database with their `state`."""
    with pool.use() as connection:
        active_, previous = promote.found_active(connection), promote.before(connection)
        known, tried = promote.known(connection), experiments.running(connection)
    by_id = {previous: "previous", None if tried is None else tried.treatment: "treatment", active_: "active"}
    return {
        "active": active_,
        "previous": previous,
        "experiment": tried,
        "known": [{**each, "state": by_id.get(each["bundle"])} for each in known],
    }


class Loaded(Generic[T]):
    """What `build` makes of a bundle, by bundle id; beyond KEPT the one last used longest ago goes.

    An id that the store does not have is refused.
    """

    def __init__(self, store: str, build: Callable[[Bundle], T]) -> None:
        self._store = store
        self._build = build
        self._parts: OrderedDict[str, T] = OrderedDict()
        self._loading = threading.Lock()  # held for as long as a bundle loads
        self._order = threading.Lock()  # held for a moment only: an answer never waits for the next bundle

    def get(self, name: str) -> T:
        """The part of bundle `name`, loaded and verified if need be. Raises ArtifactError when it cannot be."""
        found = self._use(name)
        if found is None:
            with self._loading:
                found = self._use(name)
                if found is None:
                    opened = bundle.read(self._store, name)
                    bundle.verify(opened)
                    found = self._build(opened)
                    with self._order:
                        self._parts[name] = found
                        while len(self._parts) > KEPT:
                            self._parts.popitem(last=False)
        return found

    def follow(self, pool: Connections) -> None:
        """From now on load each bundle that becomes active, or is tried beside it, in a thread of its own.

        The answer that the ingress tries before it switches passes through one replica of each stage. The others would
        begin to load when they are first asked, and answers would do without them meanwhile.
        """
        threading.Thread(target=self._follow, args=(pool,), daemon=True).start()

    def _follow(self, pool: Connections) -> None:
        while True:
            time.sleep(FOLLOW_S)
            try:
                for name in serving(pool):
                    self.get(name)
            except RecError:  # the ingress, which looks as often, says so
                continue
            except Exception:  # the next round may go well; a thread that ended would never say so
                log.exception("cannot load the bundles that answer")

    def _use(self, name: str) -> T | None:
        """The part of bundle `name`, now the last used one; None when it is not loaded."""
        with self._order:
            if name in self._parts:
                self._parts.move_to_end(name)
            return self._parts.get(name)


def store_folder() -> str:
    """The store's absolute path: REC_STORE, by default `.rec` in the working directory."""
    return os.path.abspath(os.environ.get("REC_STORE", ".rec"))
