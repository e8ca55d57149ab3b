"""The same recommender in one process, by FastAPI and uvicorn alone: what the graph is measured against.

    REC_STORE=.rec uvicorn --factory serve.fused:create

It answers POST /v1/recommend from the active bundle as it was at the start, one request per thread, and does nothing
else that the graph does: no stages of their own, no degradation, no switch of bundles, no limits.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

import torch
from fastapi import Body, FastAPI, Response

from rec import bundle
from rec.recommend.chain import Chain
from serve import api
from serve.answering import written
from serve.loaded import active, connections, store_folder
from serve.problems import install

CONNECTIONS = 4


def create() -> FastAPI:
    """The application over the active bundle of REC_STORE. Raises what loading a bundle raises."""
    torch.set_num_threads(1)  # as Ray gives the graph's stages
    store = store_folder()
    pool = connections(store, size=CONNECTIONS)
    opened = bundle.read(store, active(pool))
    bundle.verify(opened)
    chain = Chain(opened, pool)

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.close()

    app = FastAPI(title="shop-rec in one process", lifespan=closing, docs_url=None, redoc_url=None)
    install(app)

    @app.post("/v1/recommend", response_model=api.Recommendations)
    def recommend(body: Annotated[api.RecommendBody, Body()]) -> Response:
        answer = chain.recommend(body.request())
        applied = answer.rules
        return written(
            {
                "items": answer.items,
                "exposure_id": None,
                "bundle": answer.bundle,
                "experiment": None,
                "at": answer.at,
                "degraded": [],
                "underfilled": answer.underfilled,
                "rules": None if applied is None else {"version": applied.version, "left_out": applied.left_out},
                "funnel": asdict(answer.funnel),
                "milliseconds": answer.milliseconds,
            }
        )

    return app
