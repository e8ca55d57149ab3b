"""Parts of bundles in the memory of one replica: the active one's, and during a switch or an experiment the other's."""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rec import bundle, postgres
from rec.bundle import Bundle
from rec.errors import ArtifactError, DatabaseError, RecError
from rec.index import experiments, promote
from rec.index.connections import Connections
from rec.index.experiments import Experiment
from serve.degrade import Unavailable

log = logging.getLogger("ray.serve")

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

KEPT = 3
"""Bundles in memory at once: the one that answers, the active one where that is refused, and one that is tried."""
STAND_INS = 2
"""Bundles that are tried at a start where the active one cannot be served."""
FOLLOW_S = 2.0
"""How often a replica looks for the active bundle."""
AGAIN_S, SELDOM_S = 2.0, 300.0
"""A bundle that could not be loaded, or did not answer, is tried again after AGAIN_S, and then after twice as long each
time, up to SELDOM_S. To load one is to hash all of it: at once only where its files are others."""


def connections(store: str, *, size: int) -> Connections:
    """Connections to the store's database."""
    return Connections(postgres.url(store, create=False), size=size)


def active(pool: Connections) -> str:
    """Id of the active bundle."""
    with pool.use() as connection:
        return promote.active(connection)


def startable(pool: Connections) -> list[str]:
    """Ids of the active bundle and of its next stand-ins: what a replica may start with, in this order."""
    with pool.use() as connection:
        return [promote.active(connection), *promote.stand_ins(connection)[:STAND_INS]]


def told(name: str, error: Exception) -> str:
    """Why bundle `name` is not used, in one line."""
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, RecError) else f"bundle {name}: {type(error).__name__}: {first}"


class Attempts:
    """Attempts to start with one of the bundles of `startable`."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        """What failed, by id of the bundle."""

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Try bundle `name`; what is wrong with it is logged and kept. Raises DatabaseError, which is no bundle's."""
        try:
            yield
        except DatabaseError:
            raise
        except Exception as error:
            log.exception("not starting with bundle %s", name)
            self.errors[name] = error

    def unstartable(self) -> ArtifactError:
        """The error that none can be had, each for its reason."""
        said = [told(name, error) for name, error in self.errors.items()]
        also = "none was active before it" if len(said) == 1 else "neither can those that were active before it"
        return ArtifactError(f"the active bundle cannot be served, and {also}: {'; '.join(said)}")


class Again(NamedTuple):
    """When to try again."""

    wait: float
    """Seconds from the last attempt."""
    at: float
    """Monotonic seconds."""

    @classmethod
    def after(cls, earlier: "Again | None") -> "Again":
        """After an attempt that failed just now, for which one waited as `earlier` says; None: it was the first."""
        wait = AGAIN_S if earlier is None else min(2 * earlier.wait, SELDOM_S)
        return cls(wait, time.monotonic() + wait)

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.at


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


class Wanted(NamedTuple):
    """A bundle as a stage is asked for it."""

    id: str
    load: bool
    """Whether to load it if need be. Not for a bundle that a caller has named and that answers no shopper: a few who
    wait for it would take all places of a replica."""


class _Refusal(NamedTuple):
    """Why a bundle could not be loaded."""

    error: str
    files: object
    """What its files looked like (`_files`)."""
    again: Again


class Loaded(Generic[T]):
    """What `build` makes of a bundle, by bundle id; beyond KEPT the one last used longest ago goes.

    An id that the store does not have is refused.
    """

    def __init__(self, store: str, build: Callable[[Bundle], T]) -> None:
        self._store = store
        self._build = build
        self._parts: OrderedDict[str, T] = OrderedDict()
        self._refused: dict[str, _Refusal] = {}  # of those that cannot be loaded; changed while loading only
        self._loading = threading.Lock()  # held for as long as a bundle loads
        self._order = threading.Lock()  # held for a moment only: an answer never waits for the next bundle

    def get(self, name: str) -> T:
        """The part of bundle `name`, loaded and verified if need be. Raises ArtifactError when it cannot be.

        Whoever asks again soon gets the same error, without another try.
        """
        found = self._use(name)
        if found is None:
            with self._loading:
                found = self._use(name)
                if found is None:
                    found = self._load(name)
                    with self._order:
                        self._parts[name] = found
                        while len(self._parts) > KEPT:
                            self._parts.popitem(last=False)
        return found

    def wanted(self, asked: Wanted) -> T:
        """The part of the bundle asked for. Raises what `get` raises; at once Unavailable where it is not to load."""
        found = self.get(asked.id) if asked.load else self.kept(asked.id)
        if found is None:
            raise Unavailable(f"bundle {asked.id} is not in memory here, and nobody is made to wait for it")
        return found

    def start(self, pool: Connections) -> T:
        """The part of the active bundle; where it cannot be loaded, that of one that was active before it.

        Raises ArtifactError that names them.
        """
        attempts = Attempts()
        for name in startable(pool):
            with attempts.at(name):
                return self.get(name)
        raise attempts.unstartable()

    def _load(self, name: str) -> T:
        bundle.check_id(name)
        files, refusal = self._files(name), self._refused.get(name)
        if refusal is not None and refusal.files == files and not refusal.again.due():
            raise ArtifactError(refusal.error)
        try:
            opened = bundle.read(self._store, name)
            bundle.verify(opened)
            found = self._build(opened)
        except DatabaseError:  # not the bundle's fault
            raise
        except Exception as error:
            again = Again.after(None if refusal is None else refusal.again)
            self._refused[name] = _Refusal(told(name, error), files, again)
            raise
        self._refused.pop(name, None)
        return found

    def _files(self, name: str) -> object:
        """What tells the files of a bundle from those that take their place, and is cheap to look at."""
        folder = Path(self._store, "bundles", name)
        try:
            stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
        except OSError:  # they change now
            return None
        return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats]

    def follow(self, pool: Connections) -> None:
        """From now on load each bundle that becomes active, or is tried beside it, in a thread of its own.

        The answer that the ingress tries before it switches passes through one replica of each stage. The others would
        begin to load when they are first asked, and answers would do without them meanwhile.
        """
        threading.Thread(target=self._follow, args=(pool,), daemon=True).start()

    def _follow(self, pool: Connections) -> None:
        while True:
            time.sleep(FOLLOW_S)
            for name in self._looked(serving, pool) or []:
                self._looked(self.get, name)

    def _looked(self, look: Callable[[A], R], at: A) -> R | None:
        try:
            return look(at)
        except RecError:  # the ingress, which looks as often, says so
            return None
        except Exception:  # the next round may go well; a thread that ended would never say so
            log.exception("cannot load the bundles that answer")
            return None

    def kept(self, name: str) -> T | None:
        """The part of bundle `name` while it is in memory, which it is no longer for being asked for here."""
        with self._order:
            return self._parts.get(name)

    def _use(self, name: str) -> T | None:
        """The part of bundle `name`, now the last used one; None when it is not loaded."""
        with self._order:
            if name in self._parts:
                self._parts.move_to_end(name)
            return self._parts.get(name)


def store_folder() -> str:
    """The store's absolute path: REC_STORE, by default `.rec` in the working directory."""
    return os.path.abspath(os.environ.get("REC_STORE", ".rec"))
