"""The Serve graph: FastAPI ingress → UserTower → Retriever → Ranker.

    serve run serve.app:graph

The ingress chooses the bundle once per request and every stage answers for that one. It follows the active bundle: a
promoted one is loaded beside the old one and takes over after it has answered a request. It follows the rules of the
merchandiser as well. REC_STORE names the store (default `.rec`), REC_DATABASE_URL the Postgres (default: the embedded
one of the store). Importing opens nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HttpRequest

from rec.bundle import Bundle
from rec.errors import RecError
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.recommend.chain import (
    NOBODY,
    STORED_EVENTS,
    Resolver,
    Stopwatch,
    UnknownProducts,
    add_codes,
    freshen,
    microseconds,
    moment,
    prices,
    standing,
)
from rec.recommend.fitting import Fitter
from rec.recommend.request import MAX_K, Request
from rec.recommend.rulebook import RuleBook
from rec.recommend.score import retrieval_order
from rec.recommend.shelf import Shelf
from rec.recommend.why import Explainer, shown
from serve import api
from serve.limits import LimitBody
from serve.loaded import Loaded, active, connections, store_folder
from serve.stages import Ranker, Retriever, UserTower

log = logging.getLogger("ray.serve")

FOLLOW_S = 2.0
"""How often the active bundle and the rules are looked up."""
STAGE_S = 8.0
"""Longest wait for the user tower or retrieval; the answer is then 503."""
RANKER_S = 2.0
"""Longest wait for the ranker; the answer is then in retrieval order."""
LOADING_S = 300.0
"""Longest wait for a stage that loads a promoted bundle."""
DEMO_USERS = 12

T = TypeVar("T")
Stage = DeploymentHandle[Any]

app = FastAPI(title="shop-rec", summary="Recommendations that understand what a garment is.", version="1")
app.add_middleware(LimitBody, max_bytes=api.MAX_BODY_BYTES)


class Unavailable(Exception):
    """A stage that the answer cannot do without did not answer."""


@app.exception_handler(RequestValidationError)
async def _malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
    # the offending input is left out: it may be large, and may not even be text that JSON can carry
    return JSONResponse({"detail": [_field(e["loc"], e["msg"], e["type"]) for e in error.errors()]}, status_code=422)


@app.exception_handler(UnknownProducts)
async def _unknown(_: HttpRequest, error: UnknownProducts) -> JSONResponse:
    problem = {"error": "unknown_products", "message": str(error), "products": error.product_ids}
    return JSONResponse(problem, status_code=404)


@app.exception_handler(Unavailable)
@app.exception_handler(RecError)
async def _unavailable(_: HttpRequest, error: Exception) -> JSONResponse:
    log.error("cannot answer: %s", error)
    problem = {"error": "unavailable", "message": "the recommender cannot answer now; try again"}
    return JSONResponse(problem, status_code=503, headers={"Retry-After": "2"})


def _field(loc: tuple[int | str, ...], message: str, kind: str) -> dict[str, Any]:
    return {"loc": list(loc), "msg": message, "type": kind}


@dataclass(frozen=True)
class Front:
    """What the ingress holds of a bundle."""

    bundle: Bundle
    shelf: Shelf
    resolver: Resolver
    explainer: Explainer
    rules: RuleBook
    fitter: Fitter

    @classmethod
    def of(cls, bundle: Bundle, connections: Connections) -> "Front":
        """Load the ingress's part of `bundle`."""
        shelf = Shelf(bundle)
        explainer = Explainer(bundle, shelf)
        rules = RuleBook(connections, bundle, shelf, explainer.vectors)
        return cls(bundle, shelf, Resolver(bundle, shelf), explainer, rules, Fitter(bundle, shelf))


# serve.ingress copies the routes with the globals that exist by then: what they call stands above the class.
async def _within(seconds: float, stage: str, answer: Awaitable[T]) -> T:
    """The stage's answer. Raises Unavailable when it fails, refuses or takes longer than `seconds`."""
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError:
        raise Unavailable(f"{stage}: no answer within {seconds:g} s") from None
    except (RayError, RayServeException) as error:
        raise Unavailable(f"{stage}: {str(error).splitlines()[-1]}") from error


@serve.deployment(max_ongoing_requests=32, max_queued_requests=128, ray_actor_options={"num_cpus": 0.2})
@serve.ingress(app)
class Recommender:
    """HTTP in, HTTP out; holds the products and what is known of users."""

    def __init__(self, store: str, user_tower: Stage, retriever: Stage, ranker: Stage) -> None:
        self._user_tower, self._retriever, self._ranker = user_tower, retriever, ranker
        self._connections: Connections = connections(store, size=4)
        self._fronts = Loaded(store, lambda bundle: Front.of(bundle, self._connections))
        self._front = self._fronts.get(active(self._connections))
        self._page = (Path(__file__).parent / "shop.html").read_text(encoding="utf-8")
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Take over new rules, and a newly promoted bundle once every stage has answered for it."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                name = await asyncio.to_thread(active, self._connections)
                front = self._front
                if name != front.bundle.id:
                    front = await asyncio.to_thread(self._fronts.get, name)
                await asyncio.to_thread(front.rules.refresh)
                if front is not self._front:
                    await self._answer(front, Request(k=1), patience=LOADING_S, need_ranker=True)
                    log.info("bundle %s takes over from %s", name, self._front.bundle.id)
                    self._front = front
            except (RecError, Unavailable) as error:
                log.warning("staying with bundle %s: %s", self._front.bundle.id, error)
            except Exception:  # whatever it is, the next round may go well; a task that ended would never say so
                log.exception("staying with bundle %s", self._front.bundle.id)

    @app.post("/v1/recommend", response_model=api.Recommendations)
    async def recommend(self, body: api.RecommendBody) -> dict[str, Any]:
        """Products for a shopper, best first, with the reasons."""
        front = self._front
        problem = api.profile_problem(body.profile, front.resolver.profile_names)
        if problem is not None:
            raise RequestValidationError([_field(("body", "profile", problem[0]), problem[1], "value_error")])
        unknown = [name for name in body.filters.category if name not in front.shelf.categories]
        if unknown:
            message = f"unknown category {unknown[0]!r} (known: {', '.join(front.shelf.categories)})"
            raise RequestValidationError([_field(("body", "filters", "category"), message, "value_error")])
        return await self._answer(front, body.request())

    async def _answer(
        self, front: Front, request: Request, *, patience: float = STAGE_S, need_ranker: bool = False
    ) -> dict[str, Any]:
        watch = Stopwatch()
        name, catalogue = front.bundle.id, Catalogue(self._connections, front.bundle.recipe)
        now = datetime.now(UTC)
        at = moment(front.bundle, now)
        ruling = front.rules.ruling if request.rules else None
        rules = standing(ruling, now)
        known = NOBODY
        if request.user_id is not None:
            known = await asyncio.to_thread(catalogue.known, request.user_id, STORED_EVENTS)
        state, exclude = front.resolver.resolve(request, known, at)
        exclude = np.union1d(exclude, rules.exclude)
        watch.lap("state")
        encoded = await _within(patience, "user tower", self._user_tower.encode.remote(name, state))
        watch.lap("user_tower")
        wanted = max(front.bundle.config.ranker.candidates, request.k)
        found = await _within(
            patience,
            "retrieval",
            self._retriever.retrieve.remote(
                name, encoded.vector, wanted, state, exclude, request.filters, rules.pinned(request.k)
            ),
        )
        watch.lap("retrieval")
        count = len(found.candidates.rows)
        asked = self._ranker.rank.remote(name, state, found.candidates, count, microseconds(at))
        try:
            ranked = await _within(patience if need_ranker else RANKER_S, "ranker", asked)
        except Unavailable as error:
            if need_ranker:
                raise
            log.warning("answering in retrieval order: %s", error)
            ranked = retrieval_order(found.candidates, count)
        watch.lap("ranking")
        arranged = rules.arrange(
            ranked, request.k, await asyncio.to_thread(prices, rules, ranked.rows, front.shelf, catalogue)
        )
        watch.lap("rules")
        items = front.explainer.explain(arranged.ranked, state, encoded)
        add_codes(items, arranged)
        await asyncio.to_thread(front.fitter.add, items, request, known, catalogue)
        await asyncio.to_thread(freshen, items, catalogue)
        watch.lap("explanation")
        return {
            "items": items,
            "bundle": name,
            "at": at,
            "underfilled": len(items) < request.k,
            "rules": None
            if ruling is None
            else {"version": ruling.number, "left_out": rules.left_out(ranked.rows, exclude, request.k)},
            "milliseconds": watch.milliseconds(),
        }

    @app.get("/v1/products/{product_id:path}/similar", response_model=api.Neighbours)
    async def similar(self, product_id: str, k: Annotated[int, Query(ge=1, le=MAX_K)] = 10) -> dict[str, Any]:
        """The nearest available products."""
        front = self._front
        if not front.shelf.known(product_id):
            raise UnknownProducts([product_id])
        row = int(front.shelf.rows([product_id])[0])
        exclude = standing(front.rules.ruling, datetime.now(UTC)).exclude
        found = await _within(STAGE_S, "retrieval", self._retriever.similar.remote(front.bundle.id, row, k, exclude))
        items = front.explainer.similar(found.candidates.rows, found.candidates.scores, row)
        product = shown(front.shelf.card(row))
        await asyncio.to_thread(freshen, [product, *items], Catalogue(self._connections, front.bundle.recipe))
        return {"product": product, "items": items, "bundle": front.bundle.id}

    @app.get("/v1/products", response_model=api.Products)
    async def products(
        self,
        query: Annotated[str, Query(max_length=200, pattern="^[^\\x00]*$")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_K)] = 24,
    ) -> dict[str, Any]:
        """Products whose title, brand or category holds every word of `query`."""
        front = self._front
        catalogue = Catalogue(self._connections, front.bundle.recipe)
        found = await asyncio.to_thread(catalogue.find, query, limit)
        rows = front.shelf.rows([product_id for product_id in found if front.shelf.known(product_id)])
        items = [shown(front.shelf.card(row)) for row in rows.tolist()]
        await asyncio.to_thread(freshen, items, catalogue)
        return {"items": items, "bundle": front.bundle.id}

    @app.get("/v1/shop", response_model=api.ShopFacts)
    async def shop(self) -> dict[str, Any]:
        """What the page at / starts with. Shoppers are listed for the synthetic catalogue only."""
        front = self._front
        users = []
        if front.bundle.config.source.kind == "sample":
            catalogue = Catalogue(self._connections, front.bundle.recipe)
            users = await asyncio.to_thread(catalogue.shoppers, DEMO_USERS)
            for user in users:
                recent = [product_id for product_id in user["recent"] if front.shelf.known(product_id)]
                user["recent"] = [shown(front.shelf.card(row)) for row in front.shelf.rows(recent).tolist()]
        return {
            "recipe": front.bundle.recipe,
            "bundle": front.bundle.id,
            "items": len(front.shelf),
            "categories": front.shelf.categories,
            "profile_names": front.resolver.profile_names,
            "profile_ranges": api.profile_ranges(),
            "users": users,
        }

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(self) -> dict[str, Any]:
        """A real recommendation passes through every stage."""
        answer = await self._answer(self._front, Request(k=1), need_ranker=True)
        if not answer["items"]:
            raise HTTPException(503, "no product is available")
        return {
            "status": "ready",
            "bundle": answer["bundle"],
            "milliseconds": answer["milliseconds"],
            "rules": self._front.rules.state(),
        }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page(self) -> Response:
        """The demo shop."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(self._page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


def build(store: str) -> serve.Application:
    """The application that serves the active bundle of `store`."""
    parts = [stage.bind(store) for stage in (UserTower, Retriever, Ranker)]  # type: ignore[union-attr]
    return Recommender.bind(store, *parts)  # type: ignore[attr-defined]


graph = build(store_folder())
