"""What a body must be said to be, over ASGI."""

from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.testclient import TestClient

from serve.examples import described
from serve.problems import install


class Told(BaseModel):
    """A body."""

    k: int


@pytest.fixture
def client() -> TestClient:
    """Of a small application with a route that takes a body, and one that takes none."""
    app = FastAPI()
    install(app)

    @app.post("/told", **described({}, body=True))
    def told(body: Told) -> int:
        return body.k

    @app.delete("/all", **described({}))
    def all_() -> int:
        return 0

    return TestClient(app)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "é",
     "application/", "application/octet-stream", "", None],
)  # fmt: skip
def test_a_body_of_another_kind_is_415_with_the_kind_that_is_wanted(
    client: TestClient, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type.encode("latin-1")}
    answer = client.post("/told", content=b'{"k": 3}', headers=headers)
    assert answer.status_code == 415
    assert answer.json() == {
        "error": "unsupported_media_type",
        "message": "send the body as `Content-Type: application/json`",
    }


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/ld+json"]
)
def test_json_is_taken_by_any_of_its_names(client: TestClient, content_type: str) -> None:
    assert client.post("/told", content=b'{"k": 3}', headers={"content-type": content_type}).json() == 3


def test_where_there_is_no_body_its_kind_is_no_matter(client: TestClient) -> None:
    missing: dict[str, Any] = client.post("/told").json()
    assert missing["detail"][0]["type"] == "missing"
    assert client.post("/told", headers={"content-type": "text/plain"}).status_code == 422
    assert client.request("DELETE", "/all", content=b"x", headers={"content-type": "text/plain"}).json() == 0
