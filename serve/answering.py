"""What an answer takes: the stages in their order, without those that do not answer."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from fastapi import Response
from pydantic_core import to_json

from rec import tracing
from rec.bundle import Bundle
from rec.errors import DatabaseError
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.index.exposures import new_id
from rec.index.search import Filters
from rec.recommend.front import NOBODY, Front, microseconds, standing
from rec.recommend.passage import Opening, Passage, explanation
from rec.recommend.request import Encoded, Request
from rec.recommend.retrieve import Retrieved
from rec.recommend.score import retrieval_order
from rec.recommend.standby import Standby
from rec.recommend.stopwatch import Stopwatch
from rec.recommend.why import shown
from serve.asking import Asking
from serve.degrade import Ladder, Unavailable
from serve.exposures import Arm, ExposureLog, Shop
from serve.metrics import metrics
from serve.stages import Ranker, Retriever, UserTower

STAGE_S = 8.0
"""Longest wait for the user tower or retrieval; the answer then does without."""
RANKER_S = 2.0
"""Longest wait for the ranker; the answer is then in retrieval order."""


class BackedFront(Front):
    """What the ingress holds of a bundle: the front, and candidates for when retrieval or Postgres is away."""

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        super().__init__(bundle, connections)
        self.standby = Standby(bundle, self.vectors)
        self.logged = Shop.of(bundle, self.shelf, self.resolver.profile_names)


def written(answer: dict[str, Any]) -> Response:
    """An answer as it is, which spares the time of validating what was just made."""
    return Response(to_json(answer), media_type="application/json")


def exported(catalogue: Catalogue, user_id: str) -> Response | None:
    """All that is stored of a user as api.StoredUser, written here: megabytes of it are; None for a stranger."""
    found = catalogue.stored(user_id)
    return None if found is None else written({"user_id": user_id, **asdict(found)})


class Answering:
    """Answers from a front and the stages behind it; the bodies are those of serve/api."""

    def __init__(self, asking: Asking, exposures: ExposureLog) -> None:
        self._asking, self._exposures = asking, exposures

    async def recommend(
        self,
        front: BackedFront,
        request: Request,
        arm: Arm | None = None,
        *,
        patience: float = STAGE_S,
        whole: bool = False,
    ) -> dict[str, Any]:
        """The recommendations, logged as shown to a shopper of an experiment's `arm`.

        `whole`: shown to nobody, or what a stage failed with, waiting `patience` seconds for each.
        """
        return await self._asking.answer(self._recommend(front, request, arm, patience, whole))

    async def similar(self, front: BackedFront, row: int, k: int) -> dict[str, Any]:
        """The nearest available products of an item row."""
        return await self._asking.answer(self._similar(front, row, k))

    async def explain(self, front: BackedFront, request: Request, product_id: str) -> dict[str, Any]:
        """Why a product is or is not in the list."""
        return await self._asking.answer(self._explain(front, request, product_id))

    async def _recommend(
        self, front: BackedFront, request: Request, arm: Arm | None, patience: float, whole: bool
    ) -> dict[str, Any]:
        watch, ladder = Stopwatch(), Ladder(whole=whole)
        passage = await self._pass(front, request, watch, ladder, patience)
        with watch.lap("explanation"):
            items = await self._items(front, passage, ladder)
        metrics().answer(watch.milliseconds(), passage.candidates.sources, ladder.codes)
        exposure_id = new_id()
        if not whole:  # a probe is no shopper
            scores = passage.candidates.scores
            nearest = float(scores.max()) if passage.encoded is not None and len(scores) else None
            metrics().shopper(len(passage.began.state.items), nearest)
            self._exposures.note(front.logged, exposure_id, passage, ladder.codes, arm)
        ruling, underfilled = passage.began.ruling, len(items) < request.k
        tracing.tell(
            {
                "rec.bundle": front.bundle.id,
                "rec.k": request.k,
                "rec.candidates": len(passage.candidates.rows),
                "rec.underfilled": underfilled,
                "rec.degraded": ladder.codes,
            }
        )
        return {
            "items": items,
            "exposure_id": exposure_id,
            "bundle": front.bundle.id,
            "experiment": None if arm is None else arm._asdict(),
            "at": passage.began.at,
            "degraded": ladder.codes,
            "underfilled": underfilled,
            "rules": None if ruling is None else {"version": ruling.number, "left_out": passage.left_out()},
            "milliseconds": watch.milliseconds(),
        }

    async def _similar(self, front: BackedFront, row: int, k: int) -> dict[str, Any]:
        ladder = Ladder()
        exclude = standing(front.rules.ruling, datetime.now(UTC)).exclude
        try:
            found = await self._asking.ask(STAGE_S, Retriever, Retriever.similar, front.bundle.id, row, k, exclude)
        except Unavailable as error:
            ladder.down("ann_unavailable", error)
            found = await self._asking.blocking(front.standby.similar, row, k, exclude)
        items = front.explainer.similar(found.candidates.rows, found.candidates.scores, row)
        product = shown(front.shelf.card(row))
        await self._freshen(front, [product, *items], ladder)
        metrics().degraded(ladder.codes)
        return {"product": product, "items": items, "bundle": front.bundle.id, "degraded": ladder.codes}

    async def _explain(self, front: BackedFront, request: Request, product_id: str) -> dict[str, Any]:
        ladder = Ladder()
        passage = await self._pass(front, request, Stopwatch(), ladder)
        items = await self._items(front, passage, ladder)
        available = passes = False
        if front.shelf.known(product_id):
            row = front.shelf.rows([product_id])
            available, passes = [
                await self._passing(front, row, filters, ladder) for filters in (Filters(), request.filters)
            ]
        found = await self._asking.blocking(
            explanation, passage, product_id, items, front.shelf, front.vectors, available=available, passes=passes
        )
        metrics().degraded(ladder.codes)
        return {**asdict(found), "bundle": front.bundle.id, "degraded": ladder.codes}

    async def _items(self, front: BackedFront, passage: Passage, ladder: Ladder) -> list[dict[str, Any]]:
        # the fit head takes longer than everybody else should wait for
        foretells = front.fitter.foretells
        items = await self._asking.blocking(front.items, passage) if foretells else front.items(passage)
        await self._freshen(front, items, ladder)
        return items

    async def _freshen(self, front: BackedFront, items: list[dict[str, Any]], ladder: Ladder) -> None:
        """Put live prices into items; those of the bundle stay where Postgres does not answer."""
        try:
            await self._asking.blocking(front.freshen, items)
        except DatabaseError as error:
            ladder.down("prices_unavailable", error)

    async def _pass(
        self, front: BackedFront, request: Request, watch: Stopwatch, ladder: Ladder, patience: float = STAGE_S
    ) -> Passage:
        """Send a request through the stages, without those that do not answer."""
        ask, name, now, known = self._asking.ask, front.bundle.id, datetime.now(UTC), NOBODY
        with watch.lap("state"):
            if request.named:
                try:
                    known = await self._asking.blocking(front.known, request)
                except DatabaseError as error:
                    ladder.down("history_unavailable", error)
            began = front.begin(request, known, front.rules.ruling, now)
        encoded: Encoded | None = None
        with watch.lap("user_tower"):
            try:
                encoded = await ask(patience, UserTower, UserTower.encode, name, began.state)
            except Unavailable as error:
                ladder.down("user_tower_unavailable", error)
        with watch.lap("retrieval"):
            candidates = (await self._retrieve(front, began, encoded, ladder, patience)).candidates
        count = len(candidates.rows)
        ranked = retrieval_order(candidates, count)
        with watch.lap("ranking"):
            if encoded is not None:  # the ranker was never shown candidates without scores
                longest, at = patience if ladder.whole else RANKER_S, microseconds(began.at)
                try:
                    ranked = await ask(longest, Ranker, Ranker.rank, name, began.state, candidates, count, at)
                except Unavailable as error:
                    ladder.down("ranker_unavailable", error)
        degraded, prices = list(ladder.codes), None
        with watch.lap("rules"):
            if began.rules.needs_prices:
                try:
                    prices = await self._asking.blocking(front.prices, ranked.rows)
                except DatabaseError as error:
                    ladder.down("prices_unavailable", error)
                    prices = front.published_prices(ranked.rows)
            arranged = began.rules.arrange(ranked, request.k, prices)
        return Passage(began, encoded, candidates, ranked, arranged, degraded)

    async def _retrieve(
        self, front: BackedFront, began: Opening, encoded: Encoded | None, ladder: Ladder, patience: float
    ) -> Retrieved:
        """The candidates; without a user vector popular ones, and from this process where the retriever fails."""
        k, state, exclude = began.num_candidates, began.state, began.exclude
        filters, pinned = began.request.filters, began.rules.pinned(began.request.k)
        what = (front.bundle.id, k, state, exclude, filters, pinned)
        ask, blocking, standby = self._asking.ask, self._asking.blocking, front.standby
        try:
            if encoded is None:
                return await ask(patience, Retriever, Retriever.popular, *what)
            return await ask(patience, Retriever, Retriever.retrieve, *what, encoded.vector)
        except Unavailable as error:
            ladder.down("ann_unavailable", error)
        if encoded is None:
            return await blocking(standby.popular, k, state=state, exclude=exclude, filters=filters, also=pinned)
        return await blocking(
            standby.retrieve, encoded.vector, k, state=state, exclude=exclude, filters=filters, also=pinned
        )

    async def _passing(self, front: BackedFront, row: np.ndarray, filters: Filters, ladder: Ladder) -> bool:
        """Whether the product of item row int64[1] is in stock and passes `filters`."""
        try:
            found = await self._asking.ask(STAGE_S, Retriever, Retriever.passing, front.bundle.id, row, filters)
        except Unavailable as error:
            ladder.down("ann_unavailable", error)
            found = front.standby.passing(row, filters)
        return len(found) > 0
