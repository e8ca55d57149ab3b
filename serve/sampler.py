"""Recall as it is served: a share of the answers of the HNSW index is compared with exact search, beside the requests.

One thread, on a database connection of its own that is opened with the first sample, compares one answer after the
other and then rests, so that it never takes more than a tenth of one core of the database. Answers that are sampled
meanwhile wait, as long as they are few; more are let go. Answers of exact search are not compared with themselves.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable

from rec.errors import RecError
from rec.index import recall
from rec.index.connections import Connections
from rec.index.recall import Asked
from rec.index.search import Found, VectorIndex

log = logging.getLogger("ray.serve")

WAITING = 16
"""Most answers that wait to be compared."""
REST = 9
"""How much longer than a comparison the rest after it is."""

Heard = Callable[[VectorIndex, Asked, Found], None]


class RecallSampler:
    """Compares answers and tells class of filter and recall of each."""

    def __init__(self, connect: Callable[[], Connections], tell: Callable[[str, float], None]) -> None:
        self._connect, self._tell = connect, tell
        self._waiting: queue.Queue[tuple[VectorIndex, Asked, Found]] = queue.Queue(WAITING)
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None

    def at(self, share: float) -> Heard | None:
        """What is to hear of every search, of which it samples `share`; None where that is 0."""

        def heard(index: VectorIndex, asked: Asked, found: Found) -> None:
            if found.path == "hnsw" and random.random() < share:
                self._sample(index, asked, found)

        return heard if share else None

    def _sample(self, index: VectorIndex, asked: Asked, found: Found) -> None:
        try:
            self._waiting.put_nowait((index, asked, found))
        except queue.Full:
            return
        with self._started:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="recall", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        connections: Connections | None = None
        while True:
            index, asked, found = self._waiting.get()
            started = time.monotonic()
            try:
                if connections is None:
                    connections = self._connect()
                    started = time.monotonic()
                self._tell(*recall.compare(index, asked, found, connections))
            except RecError as error:
                log.warning("recall was not measured: %s", error)
            except Exception:  # whatever it is, the next one may go well; a thread that ended would never say so
                log.exception("recall was not measured")
            time.sleep(REST * (time.monotonic() - started))
