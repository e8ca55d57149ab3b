"""From a request to the body of its answer, with what is noted of it: metrics, the log of lists, the trace."""

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import Response
from pydantic_core import to_json

from rec import tracing
from rec.index.catalogue import Catalogue
from rec.index.exposures import new_id
from rec.recommend.front import standing
from rec.recommend.request import Request
from rec.recommend.stopwatch import Stopwatch
from rec.recommend.walk import explained, listed, walk
from rec.recommend.why import shown
from serve.arrival import Patience, due, waited
from serve.asking import Asking
from serve.degrade import Ladder, Overloaded
from serve.exposures import Arm, ExposureLog
from serve.fallible import DEADLINE_S, BackedFront, Fallible
from serve.metrics import metrics

LEAST_S = 1.0
"""Left to a request when this server takes it, at least: with less it is refused."""


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
        self._patience = Patience(DEADLINE_S - LEAST_S)

    async def recommend(
        self,
        front: BackedFront,
        request: Request,
        arm: Arm | None = None,
        *,
        patience: float = DEADLINE_S,
        whole: bool = False,
        compared: bool = False,
    ) -> dict[str, Any]:
        """The recommendations, logged as shown to a shopper of an experiment's `arm`.

        `whole`: shown to nobody, or what a stage failed with. `compared`: of a bundle that was named, beside the list
        that the shopper gets: it is not logged, counts in no metric, and no stage loads the bundle for it. Due
        `patience` seconds after the request came: to wait for a thread takes of them, too. Raises Overloaded where
        hardly any are left, unless `whole`.
        """
        if not whole:
            self._admit()
        answer, note = await self._asking.answer(self._recommend(front, request, arm, due(patience), whole, compared))
        if note is not None:  # not where it was made: a list that is made for a caller who has left is shown to nobody
            note()
        return answer

    async def similar(
        self, front: BackedFront, row: int, k: int, *, evidence: bool, compared: bool = False
    ) -> dict[str, Any]:
        """The nearest available products of an item row."""
        self._admit()
        return await self._asking.answer(self._similar(front, row, k, due(), evidence, compared))

    async def explain(
        self, front: BackedFront, request: Request, product_id: str, *, compared: bool = False
    ) -> dict[str, Any]:
        """Why a product is or is not in the list."""
        self._admit()
        return await self._asking.answer(self._explain(front, request, product_id, due(), compared))

    def _admit(self) -> None:
        """Raises Overloaded where the request at hand had waited for too long when it came to this server.

        Who waits here, for threads that wait for Postgres, is answered without Postgres.
        """
        if self._patience.spent(waited(), time.monotonic()):
            metrics().waited(1e3 * waited())
            raise Overloaded(f"the request waited {waited():.1f} s for its turn; try again")

    async def _recommend(
        self, front: BackedFront, request: Request, arm: Arm | None, until: float, whole: bool, compared: bool
    ) -> tuple[dict[str, Any], Callable[[], None] | None]:
        """The answer, and what logs it as shown."""
        if not whole and not compared:
            metrics().waited(1e3 * (DEADLINE_S - (until - time.monotonic())))
        watch, ladder = Stopwatch(), Ladder(whole=whole)
        stages = Fallible(self._asking, front, ladder, until, load=not compared)
        now = datetime.now(UTC)
        passage = await walk(front, stages, request, front.rules.ruling, now, watch)
        with watch.lap("explanation"):
            items = await listed(front, stages, passage)
        funnel = asdict(passage.funnel(len(front.shelf)))
        exposure_id = note = None
        if not whole and not compared:  # a probe is no shopper, nor is a list of a named bundle what one gets
            metrics().answer(watch.milliseconds(), passage.candidates.sources, funnel, ladder.causes)
        if not whole and not compared and not request.without:  # nor does anybody shop by half a list
            exposure_id = new_id()
            scores = passage.candidates.scores
            nearest = float(scores.max()) if passage.encoded is not None and len(scores) else None
            metrics().shopper(len(passage.began.state.items), nearest)
            metrics().unknown(front.resolver.passed_over(request, passage.began.known))
            note = partial(self._exposures.note, front.logged, exposure_id, now, passage, ladder.codes, arm)
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
        answer = {
            "items": items,
            "exposure_id": exposure_id,
            "bundle": front.bundle.id,
            "experiment": None if arm is None else arm._asdict(),
            "at": passage.began.at,
            "degraded": ladder.codes,
            "underfilled": underfilled,
            "rules": None if ruling is None else {"version": ruling.number, "left_out": passage.left_out()},
            "funnel": funnel,
            "milliseconds": watch.milliseconds(),
        }
        return answer, note

    async def _similar(
        self, front: BackedFront, row: int, k: int, until: float, evidence: bool, compared: bool
    ) -> dict[str, Any]:
        ladder = Ladder()
        stages = Fallible(self._asking, front, ladder, until, load=not compared)
        found = await stages.similar(row, k, standing(front.rules.ruling, datetime.now(UTC)).exclude)
        items = front.explainer.similar(found.candidates.rows, found.candidates.scores, row)
        product = shown(front.shelf.card(row))
        if evidence:
            front.cite([product, *items])
        await stages.freshen([product, *items])
        if not compared:
            metrics().degraded(ladder.causes)
        return {"product": product, "items": items, "bundle": front.bundle.id, "degraded": ladder.codes}

    async def _explain(
        self, front: BackedFront, request: Request, product_id: str, until: float, compared: bool
    ) -> dict[str, Any]:
        ladder = Ladder()
        stages = Fallible(self._asking, front, ladder, until, load=not compared)
        found = await explained(front, stages, request, product_id, front.rules.ruling, datetime.now(UTC))
        if not compared:
            metrics().degraded(ladder.causes)
        return {**asdict(found), "bundle": front.bundle.id, "degraded": ladder.codes}
