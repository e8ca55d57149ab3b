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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HttpRequest

from rec import api_keys, postgres
from rec.bundle import Bundle
from rec.errors import DatabaseError, RecError
from rec.index import forget, live_events
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.index.forget import NotAllowed
from rec.index.search import Filters
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
    published_prices,
    standing,
)
from rec.recommend.fitting import Fitter
from rec.recommend.passage import Passage, explanation
from rec.recommend.request import MAX_CONTEXT_CHARS, MAX_K, Encoded, Request
from rec.recommend.retrieve import Retrieved
from rec.recommend.rulebook import RuleBook
from rec.recommend.ruling import InForce
from rec.recommend.score import retrieval_order
from rec.recommend.shelf import Shelf
from rec.recommend.standby import Standby
from rec.recommend.why import Explainer, shown
from rec.state import UserState
from serve import api
from serve.guard import Cors, Guard, Observe
from serve.limits import LimitBody
from serve.loaded import Loaded, active, connections, states, store_folder
from serve.metrics import metrics
from serve.stages import Ranker, Retriever, UserTower

log = logging.getLogger("ray.serve")

FOLLOW_S = 2.0
"""How often the active bundle and the rules are looked up."""
STAGE_S = 8.0
"""Longest wait for the user tower or retrieval; the answer then does without."""
RANKER_S = 2.0
"""Longest wait for the ranker; the answer is then in retrieval order."""
LOADING_S = 300.0
"""Longest wait for a stage that loads a promoted bundle."""
DEMO_USERS = 12

T = TypeVar("T")
Stage = DeploymentHandle[Any]

app = FastAPI(title="shop-rec", summary="Recommendations that understand what a garment is.", version="1")
app.add_middleware(LimitBody, max_bytes=api.MAX_BODY_BYTES)
for layer in (Guard, Cors, Observe):  # each around those before it
    app.add_middleware(layer)


class Unavailable(Exception):
    """A stage did not answer."""


class UnknownEventProducts(UnknownProducts):
    """Events name products that the bundle does not have: none of them is taken."""


@app.exception_handler(RequestValidationError)
async def _malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
    # the offending input is left out: it may be large, and may not even be text that JSON can carry
    return JSONResponse({"detail": [_field(e["loc"], e["msg"], e["type"]) for e in error.errors()]}, status_code=422)


@app.exception_handler(UnknownProducts)
async def _unknown(_: HttpRequest, error: UnknownProducts) -> JSONResponse:
    problem = {"error": "unknown_products", "message": str(error), "products": error.product_ids}
    return JSONResponse(problem, status_code=422 if isinstance(error, UnknownEventProducts) else 404)


@app.exception_handler(NotAllowed)
async def _not_allowed(_: HttpRequest, error: NotAllowed) -> JSONResponse:
    return JSONResponse({"error": "not_allowed", "message": str(error)}, status_code=403)


@app.exception_handler(Unavailable)
@app.exception_handler(RecError)
async def _unavailable(_: HttpRequest, error: Exception) -> JSONResponse:
    log.error("cannot answer: %s", error)
    problem = {"error": "unavailable", "message": "the recommender cannot answer now; try again"}
    return JSONResponse(problem, status_code=503, headers={"Retry-After": "2"})


def _field(loc: tuple[int | str, ...], message: str, kind: str) -> dict[str, Any]:
    return {"loc": list(loc), "msg": message, "type": kind}


class Ladder:
    """What an answer does without, by reason code."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.codes: list[str] = []

    def down(self, code: str, error: Exception) -> None:
        """Go on without what failed with `error`; raises it where the answer must be whole."""
        if self.whole:
            raise error
        log.warning("%s: %s", code, error)
        self.codes += [] if code in self.codes else [code]


@dataclass(frozen=True)
class Front:
    """What the ingress holds of a bundle."""

    bundle: Bundle
    shelf: Shelf
    resolver: Resolver
    explainer: Explainer
    rules: RuleBook
    standby: Standby
    fitter: Fitter

    @classmethod
    def of(cls, bundle: Bundle, connections: Connections) -> "Front":
        """Load the ingress's part of `bundle`."""
        shelf = Shelf(bundle)
        explainer = Explainer(bundle, shelf)
        rules = RuleBook(connections, bundle, shelf, explainer.vectors)
        return cls(
            bundle,
            shelf,
            Resolver(bundle, shelf),
            explainer,
            rules,
            Standby(bundle, explainer.vectors),
            Fitter(bundle, shelf),
        )


def _check_categories(front: Front, names: list[str], where: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in front.shelf.categories]
    if unknown:
        message = f"unknown category {unknown[0]!r} (known: {', '.join(front.shelf.categories)})"
        raise RequestValidationError([_field(where, message, "value_error")])


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
        client = _get_global_client()
        assert client is not None, "a replica has a controller"
        api_keys.check_bind(client.http_config.host, api_keys.access())
        self._store = store
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
                metrics().rules(0 if front.rules.ruling is None else front.rules.ruling.number)
                if front is not self._front:
                    await self._answer(front, Request(k=1), patience=LOADING_S, whole=True)
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
        _check_categories(front, body.filters.category, ("body", "filters", "category"))
        problem = api.profile_problem(body.profile, front.resolver.profile_names)
        if problem is not None:
            raise RequestValidationError([_field(("body", "profile", problem[0]), problem[1], "value_error")])
        return await self._answer(front, body.request())

    async def _answer(
        self, front: Front, request: Request, *, patience: float = STAGE_S, whole: bool = False
    ) -> dict[str, Any]:
        watch, ladder = Stopwatch(), Ladder(whole=whole)
        passage = await self._pass(front, request, watch, ladder, patience)
        items = await self._items(front, passage, ladder)
        watch.lap("explanation")
        metrics().answer(watch.milliseconds(), passage.candidates.sources, ladder.codes)
        return {
            "items": items,
            "bundle": front.bundle.id,
            "at": passage.at,
            "degraded": ladder.codes,
            "underfilled": len(items) < request.k,
            "rules": None
            if passage.ruling is None
            else {"version": passage.ruling.number, "left_out": passage.left_out()},
            "milliseconds": watch.milliseconds(),
        }

    async def _items(self, front: Front, passage: Passage, ladder: Ladder) -> list[dict[str, Any]]:
        ranked = passage.arranged.ranked
        items = front.explainer.explain(ranked, passage.state, passage.encoded, passage.degraded)
        add_codes(items, passage.arranged)
        catalogue = Catalogue(self._connections, front.bundle.recipe)
        await asyncio.to_thread(front.fitter.add, items, passage.request, passage.known, catalogue)
        await self._freshen(front, items, ladder)
        return items

    async def _freshen(self, front: Front, items: list[dict[str, Any]], ladder: Ladder) -> None:
        """Put live prices into items; those of the bundle stay where Postgres does not answer."""
        try:
            await asyncio.to_thread(freshen, items, Catalogue(self._connections, front.bundle.recipe))
        except DatabaseError as error:
            ladder.down("prices_unavailable", error)

    async def _pass(
        self, front: Front, request: Request, watch: Stopwatch, ladder: Ladder, patience: float = STAGE_S
    ) -> Passage:
        """Send a request through the stages, without those that do not answer."""
        name, catalogue = front.bundle.id, Catalogue(self._connections, front.bundle.recipe)
        now = datetime.now(UTC)
        at = moment(front.bundle, now)
        ruling = front.rules.ruling if request.rules else None
        rules = standing(ruling, now)
        known = NOBODY
        if request.user_id is not None or request.client_id is not None:
            try:
                known = await asyncio.to_thread(catalogue.known, request.user_id, STORED_EVENTS, request.client_id)
            except DatabaseError as error:
                ladder.down("history_unavailable", error)
        state, exclude = front.resolver.resolve(request, known, at)
        exclude = np.union1d(exclude, rules.exclude)
        watch.lap("state")
        encoded: Encoded | None = None
        try:
            encoded = await _within(patience, "user tower", self._user_tower.encode.remote(name, state))
        except Unavailable as error:
            ladder.down("user_tower_unavailable", error)
        watch.lap("user_tower")
        wanted = max(front.bundle.config.ranker.candidates, request.k)
        found = await self._retrieve(front, encoded, wanted, state, exclude, request, rules, ladder, patience)
        watch.lap("retrieval")
        count = len(found.candidates.rows)
        ranked = retrieval_order(found.candidates, count)
        if encoded is not None:  # the ranker was never shown candidates without scores
            asked = self._ranker.rank.remote(name, state, found.candidates, count, microseconds(at))
            try:
                ranked = await _within(patience if ladder.whole else RANKER_S, "ranker", asked)
            except Unavailable as error:
                ladder.down("ranker_unavailable", error)
        watch.lap("ranking")
        degraded = list(ladder.codes)
        try:
            live = await asyncio.to_thread(prices, rules, ranked.rows, front.shelf, catalogue)
        except DatabaseError as error:
            ladder.down("prices_unavailable", error)
            live = published_prices(ranked.rows, front.shelf)
        arranged = rules.arrange(ranked, request.k, live)
        watch.lap("rules")
        return Passage(
            request, at, ruling, rules, known, state, exclude, encoded, found.candidates, ranked, arranged, degraded
        )

    async def _retrieve(
        self,
        front: Front,
        encoded: Encoded | None,
        k: int,
        state: UserState,
        exclude: np.ndarray,
        request: Request,
        rules: InForce,
        ladder: Ladder,
        patience: float,
    ) -> Retrieved:
        """The candidates; without a user vector popular ones, and from this process where the retriever fails."""
        name, filters, pinned = front.bundle.id, request.filters, rules.pinned(request.k)
        stage, standby = self._retriever, front.standby
        try:
            if encoded is None:
                return await _within(
                    patience, "retrieval", stage.popular.remote(name, k, state, exclude, filters, pinned)
                )
            return await _within(
                patience, "retrieval", stage.retrieve.remote(name, encoded.vector, k, state, exclude, filters, pinned)
            )
        except Unavailable as error:
            ladder.down("ann_unavailable", error)
        given: dict[str, Any] = {"state": state, "exclude": exclude, "filters": filters, "also": pinned}
        if encoded is None:
            return await asyncio.to_thread(standby.popular, k, **given)
        return await asyncio.to_thread(standby.retrieve, encoded.vector, k, **given)

    @app.get("/v1/products/{product_id:path}/similar", response_model=api.Neighbours)
    async def similar(self, product_id: str, k: Annotated[int, Query(ge=1, le=MAX_K)] = 10) -> dict[str, Any]:
        """The nearest available products."""
        front = self._front
        if not front.shelf.known(product_id):
            raise UnknownProducts([product_id])
        row = int(front.shelf.rows([product_id])[0])
        exclude = standing(front.rules.ruling, datetime.now(UTC)).exclude
        ladder = Ladder(whole=False)
        try:
            asked = self._retriever.similar.remote(front.bundle.id, row, k, exclude)
            found = await _within(STAGE_S, "retrieval", asked)
        except Unavailable as error:
            ladder.down("ann_unavailable", error)
            found = await asyncio.to_thread(front.standby.similar, row, k, exclude)
        items = front.explainer.similar(found.candidates.rows, found.candidates.scores, row)
        product = shown(front.shelf.card(row))
        await self._freshen(front, [product, *items], ladder)
        metrics().degraded(ladder.codes)
        return {"product": product, "items": items, "bundle": front.bundle.id, "degraded": ladder.codes}

    @app.get("/v1/explain", response_model=api.Explanation)
    async def explain(
        self,
        product_id: Annotated[api.Id, Query()],
        user_id: Annotated[api.Id | None, Query()] = None,
        client_id: Annotated[api.Id | None, Query()] = None,
        context: Annotated[str, Query(max_length=MAX_CONTEXT_CHARS, pattern="^[^\\x00]*$")] = "",
        category: Annotated[list[api.Id], Query(max_length=20)] = [],  # noqa: B006  # FastAPI copies it
        price_min: Annotated[api.Price | None, Query()] = None,
        price_max: Annotated[api.Price | None, Query()] = None,
        exclude: Annotated[list[api.Id], Query(max_length=api.MAX_EXCLUDE)] = [],  # noqa: B006
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 10,
        rules: bool = True,
    ) -> dict[str, Any]:
        """Why a product is or is not in the list of a shopper: the same stages as POST /v1/recommend, looked into."""
        front, ladder = self._front, Ladder(whole=False)
        _check_categories(front, category, ("query", "category"))
        request = Request(
            user_id=user_id,
            client_id=client_id,
            context=context,
            filters=Filters(categories=tuple(category), price_min=price_min, price_max=price_max),
            k=k,
            exclude=tuple(exclude),
            rules=rules,
        )
        passage = await self._pass(front, request, Stopwatch(), ladder)
        items = await self._items(front, passage, ladder)
        live = await asyncio.to_thread(Catalogue(self._connections, front.bundle.recipe).live, [product_id])
        passes = False
        if front.shelf.known(product_id):
            asked = self._retriever.passing.remote(front.bundle.id, front.shelf.rows([product_id]), request.filters)
            passes = len(await _within(STAGE_S, "retrieval", asked)) > 0
        found = explanation(
            passage,
            product_id,
            items,
            front.shelf,
            front.explainer.vectors,
            available=live.get(product_id, {}).get("available", False),
            passes=passes,
        )
        return {**asdict(found), "bundle": front.bundle.id, "degraded": ladder.codes}

    @app.post("/v1/events", response_model=api.TakenEvents)
    async def events(self, body: api.EventsBody) -> live_events.Taken:
        """Take what shoppers just did; it counts in the next request of each of them."""
        front = self._front
        missing = front.shelf.unknown(event.product_id for event in body.events)
        if missing:
            raise UnknownEventProducts(missing)
        told = body.live(datetime.now(UTC))
        taken = await asyncio.to_thread(live_events.store, self._connections, front.bundle.recipe, told)
        metrics().events({name: len(ids) for name, ids in asdict(taken).items()})
        return taken

    @app.get("/v1/users/{user_id:path}", response_model=api.StoredUser)
    async def user(self, user_id: Annotated[api.Id, PathParameter()]) -> dict[str, Any]:
        """All that the database holds of a user."""
        catalogue = Catalogue(self._connections, self._front.bundle.recipe)
        found = await asyncio.to_thread(catalogue.stored, user_id)
        if found is None:
            raise HTTPException(404, "nothing is stored of this user")
        return {"user_id": user_id, **asdict(found)}

    @app.delete("/v1/users/{user_id:path}", response_model=api.ForgottenUser)
    async def forget_user(self, user_id: Annotated[api.Id, PathParameter()]) -> forget.Forgotten:
        """Delete a user's events and profile, for good: neither a load nor an event brings them back."""
        url = await asyncio.to_thread(postgres.url, self._store, create=False)
        return await asyncio.to_thread(forget.forget, url, self._front.bundle.recipe, user_id)

    @app.get("/v1/bundles", response_model=api.Bundles)
    async def bundles(self) -> dict[str, Any]:
        """The active bundle, the one before it, and all that the database has."""
        return {"serving": self._front.bundle.id, **await asyncio.to_thread(states, self._connections)}

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
        answer = await self._answer(self._front, Request(k=1), whole=True)
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
