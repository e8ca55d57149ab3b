"""What is answered in place of an answer: one form for every refusal, without what was asked in it."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rec.errors import RecError
from rec.index.catalogue import TooSlow
from rec.index.forget import NotAllowed
from rec.recommend.resolve import UnknownProducts
from serve.degrade import Overloaded, Unavailable

log = logging.getLogger("ray.serve")

RETRY_S = 2
"""When whoever was answered 503 may ask again."""
TOO_SLOW = "looking these words up took too long: send them as `context` of POST /v1/recommend, or try again later"
"""The same words may well be as slow again; an index finds products by what they mean."""


class UnknownEventProducts(UnknownProducts):
    """Events name products that the bundle does not have: none of them is taken."""


def field(loc: tuple[int | str, ...], message: str, kind: str = "value_error") -> dict[str, Any]:
    """One problem of a request as 422 lists it."""
    return {"loc": list(loc), "msg": message, "type": kind}


def malformed(loc: tuple[int | str, ...], message: str) -> RequestValidationError:
    """The error that the field at `loc` is refused."""
    return RequestValidationError([field(loc, message)])


def install(app: FastAPI) -> None:
    """Let `app` answer with these."""
    app.exception_handler(RequestValidationError)(_malformed)
    app.exception_handler(UnknownProducts)(_unknown)
    app.exception_handler(NotAllowed)(_not_allowed)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(TooSlow)(_too_slow)
    app.exception_handler(Overloaded)(_overloaded)
    for error in (Unavailable, RecError):
        app.exception_handler(error)(_unavailable)


async def _malformed(_: Request, error: RequestValidationError) -> JSONResponse:
    # the offending input is left out: it may be large, and may not even be text that JSON can carry
    return JSONResponse({"detail": [field(e["loc"], e["msg"], e["type"]) for e in error.errors()]}, status_code=422)


async def _unknown(_: Request, error: UnknownProducts) -> JSONResponse:
    problem = {"error": "unknown_products", "message": str(error), "products": error.product_ids}
    return JSONResponse(problem, status_code=422 if isinstance(error, UnknownEventProducts) else 404)


async def _not_allowed(_: Request, error: NotAllowed) -> JSONResponse:
    return JSONResponse({"error": "not_allowed", "message": str(error)}, status_code=403)


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return JSONResponse({"error": name, "message": error.detail}, status_code=error.status_code, headers=error.headers)


async def _too_slow(_: Request, error: TooSlow) -> JSONResponse:
    log.warning("cannot answer: %s", error)
    problem = {"error": "search_too_slow", "message": TOO_SLOW}
    return JSONResponse(problem, status_code=503, headers={"Retry-After": str(RETRY_S)})


async def _overloaded(_: Request, error: Overloaded) -> JSONResponse:
    problem = {"error": "overloaded", "message": str(error)}
    return JSONResponse(problem, status_code=503, headers={"Retry-After": str(RETRY_S)})


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.error("cannot answer: %s", error)
    problem = {"error": "unavailable", "message": "the recommender cannot answer now; try again"}
    return JSONResponse(problem, status_code=503, headers={"Retry-After": str(RETRY_S)})
