"""The rules of a bundle's catalogue as the database has them: looked up now and then, never by a request that waits."""

import logging
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.bundle import Bundle
from rec.errors import RecError
from rec.index import rule_versions
from rec.index.connections import Connections
from rec.recommend.facets import Facets
from rec.recommend.rules import Rules, parse
from rec.recommend.ruling import Ruling
from rec.recommend.shelf import Shelf

log = logging.getLogger(__name__)


class RuleBook:
    """The newest rules that this program can read, compiled for one bundle."""

    def __init__(self, connections: Connections, bundle: Bundle, shelf: Shelf, vectors: NDArray[np.float32]) -> None:
        """`vectors` are the bundle's float32[N, d] unit rows."""
        self._connections, self._bundle, self._shelf, self._vectors = connections, bundle, shelf, vectors
        self._facets: Facets | None = None
        self._number = 0
        self._looked = -np.inf
        self._refreshing = threading.Lock()
        self.ruling: Ruling | None = None
        """None: there are no rules."""
        self.problem: str | None = None
        """Why the newest version is not in force here; the one before it is."""
        self.refresh()

    def refresh(self, older_than_s: float = 0.0) -> None:
        """See whether the rules changed, unless that was done in the last `older_than_s` seconds."""
        with self._refreshing:
            if time.monotonic() - self._looked < older_than_s:
                return
            newest = rule_versions.in_force(self._connections, self._bundle.recipe)
            self._looked = time.monotonic()
            number = 0 if newest is None else newest.number
            if number == self._number:
                return
            source = "" if newest is None else newest.source
            try:
                self.ruling = self.compiled(parse(source, f"version {number}"), number) if source else None
                self.problem = None
            except RecError as error:  # written by a newer program: recommending goes on
                self.problem = str(error)
                log.error("the rules stay as they were: %s", error)
            self._number = number
            if self.ruling is not None and self.ruling.unknown:
                log.warning("rules version %d: %s", number, "; ".join(map(str, self.ruling.unknown)))

    def compiled(self, rules: Rules, number: int = 0) -> Ruling:
        """The rules for this bundle."""
        if self._facets is None:
            self._facets = Facets(self._bundle)
        return Ruling(rules, self._facets, self._shelf, self._vectors, number)

    def state(self) -> dict[str, Any]:
        """The `version` in force (None: no rules), what of it is `inactive` as the bundle lacks it, and a `problem`."""
        ruling = self.ruling
        return {
            "version": None if ruling is None else ruling.number,
            "inactive": [] if ruling is None else [str(unknown) for unknown in ruling.unknown],
            "problem": self.problem,
        }
