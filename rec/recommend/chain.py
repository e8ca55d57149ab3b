"""The whole chain in one process: what the Serve graph does, without Ray."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

import numpy as np

from rec.bundle import Bundle
from rec.index.catalogue import Known
from rec.index.connections import Connections
from rec.index.search import Filters
from rec.recommend.encode import UserEncoder
from rec.recommend.front import Front, microseconds
from rec.recommend.passage import Explanation, Opening, Passage
from rec.recommend.request import Answer, Applied, Encoded, Ranked, Request
from rec.recommend.retrieve import Retrieved, Retriever
from rec.recommend.ruling import Ruling
from rec.recommend.score import Scorer, Unranked
from rec.recommend.stopwatch import Stopwatch
from rec.recommend.walk import explained, finish, listed, walk
from rec.retrieval import Candidates

P = ParamSpec("P")
T = TypeVar("T")

RULES_S = 2.0
"""How old the rules of a chain may be."""


class Chain:
    """The recommender of one bundle in this process; what fails is raised."""

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        self.bundle = bundle
        self._front = Front(bundle, connections)
        self._stages = _Here(bundle, connections, self._front)
        self.shelf, self.rules = self._front.shelf, self._front.rules
        self.vectors = self._front.vectors
        """float32[N, d] unit rows."""

    def read_ahead(self) -> None:
        """Have Postgres read what searches read, as a server does before its first answer."""
        self._stages.read_ahead()

    def recommend(self, request: Request, clock: datetime | None = None) -> Answer:
        """Answer a request at `clock`, by default now, under the rules in force, at most RULES_S seconds late."""
        self.rules.refresh(older_than_s=RULES_S)
        return self.answer(request, self.rules.ruling, clock)

    def answer(self, request: Request, ruling: Ruling | None, clock: datetime | None = None) -> Answer:
        """Answer a request under the rules given."""
        watch = Stopwatch()
        passage = self.walk(request, ruling, clock, watch)
        with watch.lap("explanation"):
            items = finish(listed(self._front, self._stages, passage))
        began, applied = passage.began, None
        if began.ruling is not None:
            applied = Applied(began.ruling.number, passage.left_out(), passage.arranged.moved_by)
        funnel = passage.funnel(len(self.shelf))
        return Answer(items, self.bundle.id, began.at, len(items) < request.k, applied, funnel, watch.milliseconds())

    def explain(
        self, request: Request, product_id: str, ruling: Ruling | None, clock: datetime | None = None
    ) -> Explanation:
        """Why a product is or is not in the `answer` to the same request."""
        return finish(explained(self._front, self._stages, request, product_id, ruling, clock or datetime.now(UTC)))

    def walk(self, request: Request, ruling: Ruling | None, clock: datetime | None, watch: Stopwatch) -> Passage:
        """What a request became at each stage."""
        return finish(walk(self._front, self._stages, request, ruling, clock or datetime.now(UTC), watch))


class _Here:
    """The stages of one bundle, each run where it is asked."""

    degraded: Sequence[str] = ()

    def __init__(self, bundle: Bundle, connections: Connections, front: Front) -> None:
        self._front, self._connections = front, connections
        self._encoder = UserEncoder(bundle)
        self._retriever = Retriever(bundle, connections)
        self._scorer = Scorer(bundle)

    def read_ahead(self) -> None:
        self._retriever.read_ahead(self._connections)

    async def known(self, request: Request) -> Known:
        return self._front.known(request)

    async def encode(self, began: Opening) -> Encoded:
        (encoded,) = self._encoder.encode([began.state])
        return encoded

    async def retrieve(self, began: Opening, encoded: Encoded | None) -> Retrieved:
        k, state, exclude, filters = began.num_candidates, began.state, began.exclude, began.request.filters
        also = began.rules.pinned(began.request.k)
        if encoded is None:
            return self._retriever.popular(k, state=state, exclude=exclude, filters=filters, also=also)
        return self._retriever.retrieve(encoded.vector, k, state=state, exclude=exclude, filters=filters, also=also)

    async def rank(self, began: Opening, candidates: Candidates) -> Ranked:
        asked = Unranked(began.state, candidates, len(candidates.rows), microseconds(began.at))
        (ranked,) = self._scorer.rank([asked])
        return ranked

    async def prices(self, rows: np.ndarray) -> np.ndarray:
        return self._front.prices(rows)

    async def passing(self, row: np.ndarray, filters: Filters) -> bool:
        return len(self._retriever.passing(row, filters)) > 0

    async def freshen(self, items: list[dict[str, Any]]) -> None:
        self._front.freshen(items)

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        return work(*given, **named)
