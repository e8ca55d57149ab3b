"""The stages for one request, and what takes the place of those that do not answer."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from rec.bundle import Bundle
from rec.index.catalogue import Known
from rec.index.connections import Connections
from rec.index.search import Filters
from rec.recommend.front import NOBODY, Front, microseconds
from rec.recommend.passage import Opening
from rec.recommend.request import Encoded, Ranked, Request
from rec.recommend.retrieve import Retrieved
from rec.recommend.score import retrieval_order
from rec.recommend.standby import Standby
from rec.retrieval import Candidates
from serve.asking import Asking
from serve.degrade import AWAY, Away, Ladder, Unavailable
from serve.exposures import Shop
from serve.loaded import Wanted
from serve.stages import STAGE_S, Ranker, Retriever, UserTower

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

DEADLINE_S = 5.0
"""Longest time for an answer. What is not there by then is done without: Serve would say 408 after `request_timeout_s`.
It is the sum of the waits for shopper, retrieval, ranker and prices, so that none of them is to blame for another.
Where the user tower takes all of its own as well, those after it share what is left."""
LOOK_UP_S = 0.75
"""Longest wait for what is looked up by id, the shopper and prices; the answer then does without, as with the next."""
RANKER_S = 1.5
"""Longest wait for the ranker; the answer is then in retrieval order."""


class BackedFront(Front):
    """What the ingress holds of a bundle: the front, and candidates for when retrieval or Postgres is away."""

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        super().__init__(bundle, connections)
        self.standby = Standby(bundle, self.vectors)
        self.logged = Shop.of(bundle, self.shelf, self.resolver.profile_names)


class Fallible:
    """The stages and the database for one request, and what takes the place of those that do not answer."""

    def __init__(self, asking: Asking, front: BackedFront, ladder: Ladder, until: float, *, load: bool = True) -> None:
        """`until`: when the answer is due, monotonic seconds. Where it must be whole, a stage may take all of that, but
        a search of the database no more than STAGE_S. `load`: whether stages may load the bundle for it."""
        self._asking, self.blocking = asking, asking.blocking
        self._front, self._ladder, self._until = front, ladder, until
        self._bundle = Wanted(front.bundle.id, load)

    def _left(self, longest: float) -> float:
        left = self._until - time.monotonic()
        return left if self._ladder.whole else min(longest, left)

    async def _ask(
        self,
        longest: float,
        stage: type[S],
        method: Callable[Concatenate[S, P], T],
        *given: P.args,
        **named: P.kwargs,
    ) -> T:
        left = self._left(longest)
        if left <= 0:
            raise Away(f"{stage.__name__}: no time is left for it", "late")
        return await self._asking.ask(left, stage, method, *given, **named)

    async def _look_up(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        left = self._left(LOOK_UP_S)
        if left <= 0:
            raise Away("no time was left to ask Postgres", "late")
        return await self._asking.look_up(left, work, *given, **named)

    @property
    def degraded(self) -> Sequence[str]:
        """Reason codes of what was done without so far."""
        return self._ladder.codes

    async def known(self, request: Request) -> Known:
        """What the database knows of whoever asks, else nothing."""
        try:
            return await self._look_up(self._front.known, request)
        except AWAY as error:
            self._ladder.down("history_unavailable", error)
        return NOBODY

    async def encode(self, began: Opening) -> Encoded | None:
        """The user vector, else None."""
        try:
            return await self._ask(STAGE_S, UserTower, UserTower.encode, self._bundle, began.state)
        except Unavailable as error:
            self._ladder.down("user_tower_unavailable", error)
        return None

    async def retrieve(self, began: Opening, encoded: Encoded | None) -> Retrieved:
        """The candidates, else those of this process; without a user vector popular ones."""
        k, state, exclude = began.num_candidates, began.state, began.exclude
        filters, pinned = began.request.filters, began.rules.pinned(began.request.k)
        what = (self._bundle, k, state, exclude, filters, pinned)
        standby = self._front.standby
        try:
            if encoded is None:
                return await self._ask(STAGE_S, Retriever, Retriever.popular, *what)
            return await self._ask(STAGE_S, Retriever, Retriever.retrieve, *what, encoded.vector)
        except Unavailable as error:
            self._ladder.down("ann_unavailable", error)
        if encoded is None:
            return await self.blocking(standby.popular, k, state=state, exclude=exclude, filters=filters, also=pinned)
        return await self.blocking(
            standby.retrieve, encoded.vector, k, state=state, exclude=exclude, filters=filters, also=pinned
        )

    async def rank(self, began: Opening, candidates: Candidates) -> Ranked:
        """All candidates in the ranker's order, else in that of retrieval."""
        count = len(candidates.rows)
        what = (self._bundle, began.state, candidates, count, microseconds(began.at))
        try:
            return await self._ask(RANKER_S, Ranker, Ranker.rank, *what)
        except Unavailable as error:
            self._ladder.down("ranker_unavailable", error)
        return retrieval_order(candidates, count)

    async def prices(self, rows: np.ndarray) -> np.ndarray:
        """float32[n] prices of item rows, else those of the bundle."""
        try:
            return await self._look_up(self._front.prices, rows)
        except AWAY as error:
            self._ladder.down("prices_unavailable", error)
        return self._front.published_prices(rows)

    async def passing(self, row: np.ndarray, filters: Filters) -> bool:
        """Whether the product of item row int64[1] is in stock and passes `filters`, else whether it did."""
        try:
            found = await self._ask(STAGE_S, Retriever, Retriever.passing, self._bundle, row, filters)
        except Unavailable as error:
            self._ladder.down("ann_unavailable", error)
            found = self._front.standby.passing(row, filters)
        return len(found) > 0

    async def similar(self, row: int, k: int, exclude: np.ndarray) -> Retrieved:
        """The k nearest products to an item row without the rows `exclude`, else those of this process."""
        what = (row, k, exclude)
        try:
            return await self._ask(STAGE_S, Retriever, Retriever.similar, self._bundle, *what)
        except Unavailable as error:
            self._ladder.down("ann_unavailable", error)
        return await self.blocking(self._front.standby.similar, *what)

    async def freshen(self, items: list[dict[str, Any]]) -> None:
        """Put live prices into items; those of the bundle stay where Postgres does not answer."""
        try:
            await self._look_up(self._front.freshen, items)
        except AWAY as error:
            self._ladder.down("prices_unavailable", error)
