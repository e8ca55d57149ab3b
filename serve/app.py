"""The Serve graph: FastAPI ingress → UserTower → Retriever → Ranker.

    serve run serve.app:graph    each of them a deployment, with processes of its own: they scale apart
    serve run serve.app:whole    all stages in the ingress's process: a request leaves it for Postgres only

The ingress chooses the bundle once per request and every stage answers for that one. It follows the active bundle and
the rules of the merchandiser (`serve/following.py`): a promoted bundle is loaded beside the old one and takes over
after it has answered a request. REC_STORE names the store (default `.rec`), REC_DATABASE_URL the Postgres (default: the
embedded one of the store). Importing opens nothing.
"""

import asyncio
import os
from collections.abc import Callable
from contextvars import Context
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Body, FastAPI, HTTPException, Query, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from rec import api_keys, postgres
from rec.haproxy import ANYWHERE
from rec.index import exposures, forget, live_events
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections, watched
from rec.recommend.front import Front
from rec.recommend.request import MAX_K, Request
from rec.recommend.resolve import UnknownProducts
from rec.recommend.why import shown
from serve import api, examples, paths
from serve.answering import Answering, exported, written
from serve.arrival import Arrival
from serve.asking import Apart, Together, timely
from serve.examples import described
from serve.exposures import Arm, ExposureLog
from serve.fallible import BackedFront
from serve.following import LOADING_S, Following
from serve.guard import Cors, Guard, Observe
from serve.limits import LimitBody
from serve.loaded import Loaded, connections, states, store_folder
from serve.metrics import metrics
from serve.problems import RETRY_S, UnknownEventProducts, install, malformed
from serve.searching import Searching
from serve.stages import STAGES

P = ParamSpec("P")
T = TypeVar("T")

OTHERS_S = 12.0
"""Longest wait for the database where there is no answer without it."""
DEMO_USERS = 12

ProductId = Annotated[str, PathParameter(examples=["S0003"])]
UserId = Annotated[api.Id, PathParameter(examples=["U0042"])]
WithEvidence = Annotated[bool, Query(description="Whether products say where each of their attributes comes from.")]
ClientId = Annotated[api.Id, PathParameter(examples=["visit-7f3a"])]

paths.install()
app = FastAPI(
    title="shop-rec",
    summary="Recommendations that understand what a garment is.",
    version="1",
    docs_url=None,  # FastAPI's pages load scripts from other hosts
    redoc_url=None,
    # Serve traces, and without paths, which hold ids of users
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
install(app)
app.add_middleware(LimitBody, max_bytes=api.MAX_BODY_BYTES)
for layer in (Arrival, Guard, Cors, Observe):  # each around those before it
    app.add_middleware(layer)


# serve.ingress copies the routes with the globals that exist by then: what they call stands above the class.
def _check_categories(front: Front, names: list[str], where: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in front.shelf.categories]
    if unknown:
        raise malformed(where, f"unknown category {unknown[0]!r} (known: {', '.join(front.shelf.categories)})")


def _checked(front: Front, body: api.RecommendBody) -> Request:
    """The request of a body whose categories and profile columns the bundle knows."""
    _check_categories(front, body.filters.category, ("body", "filters", "category"))
    problem = api.profile_problem(body.profile, front.resolver.profile_names)
    if problem is not None:
        raise malformed(("body", "profile", problem[0]), problem[1])
    return body.request()


def _forgotten(forgetting: Callable[[str, str, str, forget.Session], T], store: str, recipe: str, name: str) -> T:
    """What `forgetting` does to whoever has the id `name`, over a connection of its own, which holds its thread no
    longer than the caller waits."""
    return forgetting(postgres.url(store, create=False), recipe, name, watched)


ROUTING = RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=0.02)  # type: ignore[arg-type]
"""A caller whose replicas are full looks again this soon. Two look at a time, one request each: with Serve's half a
second, more than `max_ongoing_requests` at once leave four requests a second, and a queue for as long as more come."""


@serve.deployment(
    max_ongoing_requests=32,
    max_queued_requests=128,
    request_router_config=ROUTING,
    backpressure_config=BackpressureConfig(retry_after_s=RETRY_S),
    ray_actor_options={"num_cpus": 0.2},
)
@serve.ingress(app)
class Recommender:
    """HTTP in, HTTP out; holds the products and what is known of users."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, store: str, *stages: DeploymentHandle[Any]
    ) -> None:
        """`stages` are user tower, retriever and ranker; without them they live here.

        Returns after a real answer has passed through them, or late and without it where one of them is down
        (`Following.begin`): until then Serve sends this replica no request.
        """
        client = _get_global_client()
        assert client is not None, "a replica has a controller"
        anywhere = os.environ.get(ANYWHERE) == "1"  # HAProxy listens elsewhere than Serve was told
        host = "all addresses of this machine" if anywhere else client.http_config.host
        api_keys.check_bind(host, api_keys.access())
        self._store = store
        self._exposures = ExposureLog(lambda: connections(store, size=1), metrics().exposures, exposures.share())
        # stages load for seconds: in a thread, as Serve's own work has the same loop
        asking = Apart(dict(zip(STAGES, stages, strict=True))) if stages else await asyncio.to_thread(Together, store)
        self._answering = Answering(asking, self._exposures)
        self._connections: Connections = connections(store, size=4)
        # of their own: where Postgres writes slowly, those who bring events would hold all that answers need
        self._others: Connections = connections(store, size=4)
        self._searching = Searching()
        self._page = (Path(__file__).parent / "shop.html").read_text(encoding="utf-8")
        self._probe: asyncio.Task[dict[str, Any]] | None = None
        fronts = Loaded(store, lambda bundle: BackedFront(bundle, self._connections))
        self._following = Following(self._connections, fronts, self._try)
        await self._following.begin()
        self._trial = self._following.trial

    def __del__(self) -> None:
        """What Serve calls when the replica ends."""
        self._exposures.close()

    @property
    def _front(self) -> BackedFront:
        return self._following.front

    @property
    def _catalogue(self) -> Catalogue:
        """What the database has of the shop, asked over connections that no answer needs."""
        return Catalogue(self._others, self._front.bundle.recipe)

    async def _try(self, front: BackedFront) -> None:
        """Have every stage answer for a bundle; raises what one of them failed with."""
        await self._answering.recommend(front, Request(k=1), patience=LOADING_S, whole=True)

    def _chosen(self, body: api.RecommendBody) -> tuple[BackedFront, Arm | None]:
        """The front that answers a body, and the shopper's arm; a bundle that is named counts for no experiment."""
        if body.bundle is None:
            return self._trial.of(self._front, body.user_id, body.client_id)
        loaded = {each.bundle.id: each for each in self._following.fronts()}
        if body.bundle not in loaded:
            said = f"this server has no bundle {body.bundle!r} in memory (loaded: {', '.join(loaded)})"
            raise malformed(("body", "bundle"), said)
        return loaded[body.bundle], None

    async def _asked(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns, in a thread that no answer needs. Raises DatabaseError beyond OTHERS_S."""
        return await timely(None, OTHERS_S, work, *given, **named)

    def _refused(self) -> dict[str, str] | None:
        """The active bundle while another one answers, and why; without the store's path."""
        refused = self._following.refused
        if refused is None:
            return None
        return {"bundle": refused.bundle, "error": refused.error.replace(f"{self._store}{os.sep}", "")}

    @app.post(
        "/v1/recommend",
        response_model=api.Recommendations,
        **described(examples.RECOMMENDATIONS, 404, body=True, own=examples.LATE),
    )
    async def recommend(
        self, body: Annotated[api.RecommendBody, Body(openapi_examples=examples.RECOMMEND)]
    ) -> Response:
        """Products for a shopper, best first, with the reasons."""
        front, arm = self._chosen(body)
        request, compared = self._trial.told(self._front, front, _checked(front, body)), body.bundle is not None
        if not compared:
            metrics().unknown({"event": len(body.history) - len(request.history)})
        return written(await self._answering.recommend(front, request, arm, compared=compared))

    @app.get(
        "/v1/products/{product_id:text}/similar",
        response_model=api.Neighbours,
        **described(examples.NEIGHBOURS, 404, 422, own=examples.LATE),
    )
    async def similar(
        self,
        product_id: ProductId,
        k: Annotated[int, Query(ge=1, le=MAX_K, examples=[8])] = 10,
        evidence: WithEvidence = False,
    ) -> dict[str, Any]:
        """The nearest available products."""
        front = self._following.having(product_id)
        if front is None:
            raise UnknownProducts([product_id])
        row, compared = int(front.shelf.rows([product_id])[0]), front not in self._trial.fronts(self._front)
        return await self._answering.similar(front, row, k, evidence=evidence, compared=compared)

    @app.post(
        "/v1/explain",
        response_model=api.Explanation,
        **described(examples.EXPLANATION, 404, body=True, own=examples.LATE),
    )
    async def explain(
        self, body: Annotated[api.ExplainBody, Body(openapi_examples=examples.EXPLAIN)]
    ) -> dict[str, Any]:
        """Why a product is or is not in the list of a shopper: the same stages as POST /v1/recommend, looked into."""
        front, _ = self._chosen(body)
        request = self._trial.told(self._front, front, _checked(front, body))
        return await self._answering.explain(front, request, body.product_id, compared=body.bundle is not None)

    @app.get("/v1/explain", response_model=api.Explanation, **described(examples.EXPLANATION, 422, own=examples.LATE))
    async def explain_to_anybody(self, query: Annotated[api.ExplainQuery, Query()]) -> dict[str, Any]:
        """The same for a shopper never seen."""
        front = self._front
        _check_categories(front, query.category, ("query", "category"))
        return await self._answering.explain(front, query.request(), query.product_id)

    @app.post(
        "/v1/events",
        response_model=api.TakenEvents,
        **described(examples.TAKEN, body=True, own=examples.UNKNOWN_EVENT_PRODUCTS),
    )
    async def events(
        self, body: Annotated[api.EventsBody, Body(openapi_examples=examples.EVENTS)]
    ) -> live_events.Taken:
        """Take what shoppers just did; it counts in the next request of each of them."""
        missing = self._following.unknown([event.product_id for event in body.events])
        if missing:
            raise UnknownEventProducts(missing)
        told = body.live(datetime.now(UTC))
        taken = await self._asked(live_events.store, self._others, self._front.bundle.recipe, told)
        metrics().events({name: len(ids) for name, ids in asdict(taken).items()})
        return taken

    @app.get(
        "/v1/users/{user_id:text}",
        response_model=api.StoredUser,
        **described(examples.STORED_USER, 422, own=examples.NOTHING_STORED),
    )
    async def user(self, user_id: UserId) -> Response:
        """All that the database holds of a user."""
        # written in the thread: on the event loop no other request would move meanwhile
        found = await self._asked(exported, self._catalogue, user_id)
        if found is None:
            raise HTTPException(404, "nothing is stored of this user")
        return found

    @app.delete(
        "/v1/users/{user_id:text}", response_model=api.ForgottenUser, **described(examples.FORGOTTEN, 403, 413, 422)
    )
    async def forget_user(self, user_id: UserId) -> forget.Forgotten:
        """Delete a user's events, lists and profile, for good: neither a load nor an event brings them back."""
        return await self._asked(_forgotten, forget.forget, self._store, self._front.bundle.recipe, user_id)

    @app.delete(
        "/v1/clients/{client_id:text}",
        response_model=api.ForgottenClient,
        **described(examples.FORGOTTEN_CLIENT, 403, 413, 422),
    )
    async def forget_client(self, client_id: ClientId) -> forget.ForgottenClient:
        """Delete events and lists of a shopper who had not signed in; those that come later are stored."""
        return await self._asked(_forgotten, forget.forget_client, self._store, self._front.bundle.recipe, client_id)

    @app.get("/v1/bundles", response_model=api.Bundles, **described(examples.BUNDLES))
    async def bundles(self) -> dict[str, Any]:
        """The active bundle, the one before it, and all that the database has."""
        said = await self._asked(states, self._others)
        loaded = [each.bundle.id for each in self._following.fronts()]
        front = self._front
        told = {"serving": front.bundle.id, "loaded": loaded, "refused": self._refused(), "rules": front.rules.state()}
        return told | said

    @app.get("/v1/products", response_model=api.Products, **described(examples.PRODUCTS, 422, own=examples.SLOW_SEARCH))
    async def products(
        self,
        query: Annotated[str, Query(max_length=200, pattern="^[^\\x00]*$", examples=["red dress"])] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_K, examples=[3])] = 24,
        evidence: WithEvidence = False,
    ) -> dict[str, Any]:
        """Products whose title, brand or category holds every word of `query`."""
        front = self._front
        items = await self._searching.find(front, query, limit, evidence=evidence)
        return {"items": items, "bundle": front.bundle.id}

    @app.get("/v1/shop", response_model=api.ShopFacts, **described(examples.SHOP))
    async def shop(self) -> dict[str, Any]:
        """What the page at / starts with. Shoppers are listed for the synthetic catalogue only."""
        front = self._front
        users = []
        if front.bundle.config.source.kind == "sample":
            users = await self._asked(self._catalogue.shoppers, DEMO_USERS)
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

    @app.get("/healthz", response_model=api.Health, **described({"status": "ok"}, probe=True))
    async def healthz(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=api.Readiness, **described(examples.READY, probe=True))
    async def readyz(self) -> dict[str, Any]:
        """A real recommendation passes through every stage. Those who ask at once, without a key, wait for the same.

        Why a bundle is refused and what rules say is told to those with a key, by GET /v1/bundles.
        """
        if self._probe is None or self._probe.done():
            # in a context of its own: Serve cancels what a request asked of stages when its caller hangs up
            answering = self._answering.recommend(self._front, Request(k=1), whole=True)
            self._probe = asyncio.create_task(answering, context=Context())
        answer = await asyncio.shield(self._probe)
        if not answer["items"]:
            raise HTTPException(503, "no product is available", headers={"Retry-After": str(RETRY_S)})
        told = self._front.rules.state()
        rules = {"version": told["version"], "inactive": len(told["inactive"]), "problem": bool(told["problem"])}
        return {
            "status": "ready",
            "bundle": answer["bundle"],
            "milliseconds": answer["milliseconds"],
            "rules": rules,
            "refused": None if self._following.refused is None else self._following.refused.bundle,
        }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page(self) -> Response:
        """The demo shop."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(self._page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


_stage = serve.deployment(
    max_ongoing_requests=8,
    max_queued_requests=64,
    request_router_config=ROUTING,
    ray_actor_options={"num_cpus": 0.2},
)
_store = store_folder()
graph = Recommender.bind(_store, *(_stage(stage).bind(_store) for stage in STAGES))  # type: ignore[attr-defined]
whole = Recommender.bind(_store)  # type: ignore[attr-defined]
