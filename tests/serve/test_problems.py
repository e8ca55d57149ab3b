"""Refusals as an application gives them, over ASGI."""

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.testclient import TestClient

from rec.errors import DatabaseError
from rec.index.catalogue import TooSlow
from serve import api
from serve.degrade import Overloaded
from serve.problems import RETRY_S, UnknownEventProducts, install, malformed


def test_a_search_that_is_cut_says_what_to_ask_instead_and_a_database_that_is_away_does_not() -> None:
    app = FastAPI()
    install(app)

    def raises(error: Exception) -> None:
        raise error

    app.get("/slow")(lambda: raises(TooSlow("a search for 2 words took over 1.5 s")))
    app.get("/away")(lambda: raises(DatabaseError("Postgres is away")))
    app.get("/late")(lambda: raises(Overloaded("the request waited 4 s for its turn; try again")))
    client = TestClient(app)
    slow, away, late = client.get("/slow"), client.get("/away"), client.get("/late")
    assert (slow.status_code, slow.json()["error"]) == (503, "search_too_slow")
    assert "`context` of POST /v1/recommend" in slow.json()["message"]
    assert (away.status_code, away.json()["error"]) == (503, "unavailable")
    assert (late.status_code, late.json()["error"]) == (503, "overloaded")
    assert {each.headers["retry-after"] for each in (slow, away, late)} == {str(RETRY_S)}


@pytest.mark.parametrize(
    ("error", "form"),
    [(malformed(("body", "k"), "too many"), api.Malformed), (UnknownEventProducts(["P9999"]), api.Problem)],
)
def test_a_422_has_one_of_the_forms_that_the_document_shows(error: Exception, form: type[BaseModel]) -> None:
    app = FastAPI()
    install(app)

    def raises() -> None:
        raise error

    app.get("/")(raises)
    answer = TestClient(app).get("/")
    assert answer.status_code == 422
    assert form.model_validate(answer.json()).model_dump(mode="json", exclude_unset=True) == answer.json()
