"""The way of a request through the stages, whoever runs them: a chain in one process, or the servers of a graph."""

from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from rec.index.catalogue import Known
from rec.index.search import Filters
from rec.recommend.front import NOBODY, Front
from rec.recommend.passage import Explanation, Opening, Passage, explanation
from rec.recommend.request import Encoded, Ranked, Request
from rec.recommend.retrieve import Retrieved
from rec.recommend.ruling import Ruling
from rec.recommend.score import retrieval_order
from rec.recommend.stopwatch import Stopwatch
from rec.retrieval import Candidates

P = ParamSpec("P")
T = TypeVar("T")


class Stages(Protocol):
    """Whom one request asks: the stages of a bundle, and the database.

    Each raises what it fails with, or answers with less and says so in `degraded`.
    """

    @property
    def degraded(self) -> Sequence[str]:
        """Reason codes of what the request has done without so far."""

    async def known(self, request: Request) -> Known:
        """What the database knows of whoever asks and is `named`."""

    async def encode(self, began: Opening) -> Encoded | None:
        """The user vector; None: it is done without."""

    async def retrieve(self, began: Opening, encoded: Encoded | None) -> Retrieved:
        """The candidates, popular ones where there is no user vector."""

    async def rank(self, began: Opening, candidates: Candidates) -> Ranked:
        """All candidates in the ranker's order."""

    async def prices(self, rows: np.ndarray) -> np.ndarray:
        """float32[n] prices of item rows int64[n], nan where there is none."""

    async def passing(self, row: np.ndarray, filters: Filters) -> bool:
        """Whether the product of item row int64[1] is in stock and passes `filters`."""

    async def freshen(self, items: list[dict[str, Any]]) -> None:
        """Put the database's prices into item dictionaries, in place."""

    async def blocking(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns, which takes long."""


async def walk(
    front: Front, stages: Stages, request: Request, ruling: Ruling | None, now: datetime, watch: Stopwatch
) -> Passage:
    """Send a request through all stages, under the rules given. Raises UnknownProducts."""
    with watch.lap("state"):
        known = await stages.known(request) if request.named else NOBODY
        began = front.begin(request, known, ruling, now)
    with watch.lap("user_tower"):
        encoded = None if "user_tower" in request.without else await stages.encode(began)
    with watch.lap("retrieval"):
        candidates = (await stages.retrieve(began, encoded)).candidates
    with watch.lap("ranking"):
        if encoded is None or "ranking" in request.without:  # it was never shown candidates without scores
            ranked = retrieval_order(candidates, len(candidates.rows))
        else:
            ranked = await stages.rank(began, candidates)
    degraded, prices = list(stages.degraded), None
    with watch.lap("rules"):
        if began.rules.needs_prices:
            prices = await stages.prices(ranked.rows)
        arranged = began.rules.arrange(ranked, request.k, prices)
    return Passage(began, encoded, candidates, ranked, arranged, degraded)


async def listed(front: Front, stages: Stages, passage: Passage) -> list[dict[str, Any]]:
    """The item dictionaries of an answer, with the prices of now."""
    # the fit head takes longer than everybody else should wait for
    foretells = front.fitter.foretells
    items = await stages.blocking(front.items, passage) if foretells else front.items(passage)
    await stages.freshen(items)
    return items


async def explained(
    front: Front, stages: Stages, request: Request, product_id: str, ruling: Ruling | None, now: datetime
) -> Explanation:
    """Why a product is or is not in the list of a request."""
    passage = await walk(front, stages, request, ruling, now, Stopwatch())
    items = await listed(front, stages, passage)
    available = passes = False
    if front.shelf.known(product_id):
        row = front.shelf.rows([product_id])
        available, passes = [await stages.passing(row, filters) for filters in (Filters(), request.filters)]
    return await stages.blocking(
        explanation, passage, product_id, items, front.shelf, front.vectors, available=available, passes=passes
    )


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits for an event loop, from its first step to its last here."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine} waits for an event loop")
