"""Refusals as an application gives them, over ASGI."""

from fastapi import FastAPI
from starlette.testclient import TestClient

from rec.errors import DatabaseError
from rec.index.catalogue import TooSlow
from serve.problems import RETRY_S, install


def test_a_search_that_is_cut_says_what_to_ask_instead_and_a_database_that_is_away_does_not() -> None:
    app = FastAPI()
    install(app)

    def raises(error: Exception) -> None:
        raise error

    app.get("/slow")(lambda: raises(TooSlow("a search for 2 words took over 1.5 s")))
    app.get("/away")(lambda: raises(DatabaseError("Postgres is away")))
    client = TestClient(app)
    slow, away = client.get("/slow"), client.get("/away")
    assert (slow.status_code, slow.json()["error"]) == (503, "search_too_slow")
    assert "`context` of POST /v1/recommend" in slow.json()["message"]
    assert (away.status_code, away.json()["error"]) == (503, "unavailable")
    assert slow.headers["retry-after"] == away.headers["retry-after"] == str(RETRY_S)
