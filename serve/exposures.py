"""Lists as they are shown, logged beside the requests: what the ranker learns from and experiments are measured by.

A request leaves what it has at hand in a bounded queue and goes on. One thread, on a database connection of its own
that is opened with the first list, writes what has gathered at most every FLUSH_S seconds as one COPY. Lists that find
the queue full, those of a COPY that Postgres refuses, and those that come after `close` are let go and counted. A
process that is killed, as `jobs/shop.py stop` does, loses what it has not written yet, uncounted. Readiness probes are
no lists that somebody was shown. Of a shopper who is neither a user nor a client nothing is logged that was told of
them: there is no id by which it could be deleted.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from rec.bundle import Bundle
from rec.errors import RecError
from rec.index import exposures
from rec.index.connections import Connections
from rec.index.exposures import Exposure
from rec.recommend.passage import Passage
from rec.recommend.shelf import Shelf

log = logging.getLogger("ray.serve")

WAITING = 2_048
"""Most lists that wait to be written; beyond them the newest are let go."""
AT_ONCE = 512
"""Most lists of one COPY."""
FLUSH_S = 0.5
"""How long the first list of a COPY waits for others."""
CLOSING_S = 10.0
"""How long a server that ends waits for its lists to be written."""


class Arm(NamedTuple):
    """Which part of an experiment a shopper is in."""

    number: int
    """Of the experiment."""
    arm: str
    """One of rec.index.experiments.ARMS."""


class Shop(NamedTuple):
    """What a list of a bundle is logged with; made once for each bundle."""

    catalogue: str
    bundle: str
    product_ids: Sequence[str]
    """Id of each item row."""
    profile_names: Sequence[str]
    share: float
    """Of the lists that are logged, where the server says no other."""
    candidates: int
    """Most candidates that are logged with a list."""

    @classmethod
    def of(cls, bundle: Bundle, shelf: Shelf, profile_names: Sequence[str]) -> "Shop":
        """Those of a bundle, its products and the profile columns that its models read."""
        chosen = bundle.config.feedback
        return cls(bundle.recipe, bundle.id, shelf.product_ids, profile_names, chosen.share, chosen.candidates)


class Shown(NamedTuple):
    """A list as the request leaves it."""

    exposure_id: str
    served_at: datetime
    shop: Shop
    passage: Passage
    degraded: tuple[str, ...]
    arm: Arm | None


class ExposureLog:
    """Takes lists from requests and writes them in a thread of its own."""

    def __init__(
        self, connect: Callable[[], Connections], tell: Callable[[str, int], None], share: float | None = None
    ) -> None:
        """`tell` hears what became (`logged`, `dropped`) of how many lists.

        `share` of the lists is logged, whatever the shop wants; None: as the shop wants.
        """
        self._connect, self._tell, self._share = connect, tell, share
        self._waiting: queue.Queue[Shown | None] = queue.Queue(WAITING)
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connections: Connections | None = None
        self._closed = False

    def note(
        self,
        shop: Shop,
        exposure_id: str,
        asked_at: datetime,
        passage: Passage,
        degraded: Sequence[str],
        arm: Arm | None = None,
    ) -> None:
        """Log a list that was asked for at `asked_at`, or its share of lists; never waits.

        Whoever deletes their data after that time has this list deleted, too, or not written.
        """
        share = shop.share if self._share is None else self._share
        if share < 1 and random.random() >= share:
            return
        if self._closed:
            self._tell("dropped", 1)
            return
        try:
            self._waiting.put_nowait(Shown(exposure_id, asked_at, shop, passage, tuple(degraded), arm))
        except queue.Full:
            self._tell("dropped", 1)
            return
        if self._thread is None:
            self._start()

    def close(self) -> None:
        """Write what waits, for at most CLOSING_S seconds; lists that come after it are let go."""
        self._closed = True
        thread = self._thread
        if thread is None:
            return
        try:
            self._waiting.put(None, timeout=CLOSING_S)
        except queue.Full:
            log.warning("lists that waited were not logged: %d", self._waiting.qsize())
            return
        thread.join(CLOSING_S)

    def _start(self) -> None:
        with self._started:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="exposures", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        more = True
        while more:
            gathered = [self._waiting.get()]
            if gathered[0] is not None and self._waiting.qsize() < AT_ONCE:
                time.sleep(FLUSH_S)
            while len(gathered) < AT_ONCE and gathered[-1] is not None:
                try:
                    gathered.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            more = gathered[-1] is not None
            self._write([shown for shown in gathered if shown is not None])
        if self._connections is not None:
            self._connections.close()

    def _write(self, gathered: list[Shown]) -> None:
        if not gathered:
            return
        try:
            if self._connections is None:
                self._connections = self._connect()
            exposures.write(self._connections, [exposure(shown) for shown in gathered])
            self._tell("logged", len(gathered))
            return
        except RecError as error:
            log.warning("%d lists were not logged: %s", len(gathered), error)
        except Exception:  # whatever it is, the next ones may go well; a thread that ended would never say so
            log.exception("%d lists were not logged", len(gathered))
        self._tell("dropped", len(gathered))


def exposure(shown: Shown) -> Exposure:
    """A list as it is stored."""
    shop, passage = shown.shop, shown.passage
    began, candidates, listed = passage.began, passage.candidates, passage.arranged.ranked
    ids, state, request = shop.product_ids, began.state, began.request
    order = np.argsort(candidates.rows, kind="stable")
    places = order[np.searchsorted(candidates.rows, listed.rows, sorter=order)]
    first = slice(0, shop.candidates)
    known = np.isfinite(state.profile) & request.named
    told = slice(None if request.named else 0)  # all of the history, or nothing of it
    return Exposure(
        exposure_id=shown.exposure_id,
        catalogue=shop.catalogue,
        bundle=shop.bundle,
        experiment=None if shown.arm is None else shown.arm.number,
        arm=None if shown.arm is None else shown.arm.arm,
        user_id=request.user_id,
        client_id=request.client_id,
        served_at=shown.served_at,
        at=began.at,
        context=state.context if request.named else "",
        k=request.k,
        degraded=list(shown.degraded),
        products=[ids[row] for row in listed.rows.tolist()],
        scores=listed.scores,
        probabilities=listed.probabilities,
        retrieval_scores=listed.retrieval_scores,
        sources=listed.sources,
        cooccurrence=candidates.cooccurrence[places],
        places=places,
        retrieved=len(candidates.rows),
        candidates=[ids[row] for row in candidates.rows[first].tolist()],
        candidate_scores=candidates.scores[first],
        candidate_sources=candidates.sources[first],
        history=[ids[row] for row in state.items[told].tolist()],
        history_events=state.events[told],
        history_ages=state.ages_s[told],
        profile={name: float(state.profile[at]) for at, name in enumerate(shop.profile_names) if known[at]},
    )
