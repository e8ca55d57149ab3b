"""Every route of the OpenAPI document shows what it takes and what it answers, in the form that it has."""

from functools import reduce
from operator import or_
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from serve import api
from serve.app import app

DOCUMENT = app.openapi()
OPERATIONS = {
    f"{method} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def shape(value: Any) -> Any:
    """The field names of an answer, those of every object in it too."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


def model(schema: dict[str, str]) -> type[BaseModel]:
    """What a schema of the document refers to."""
    return getattr(api, schema["$ref"].rpartition("/")[2])


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_answer_is_shown_as_it_is_given(name: str) -> None:
    responses = OPERATIONS[name]["responses"]
    shown = responses["200"]["content"]["application/json"]
    example = shown["example"]
    assert shape(model(shown["schema"]).model_validate(example).model_dump(mode="json")) == shape(example), (
        "no field more or less"
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_refusal_is_shown_in_each_form_that_it_has(name: str) -> None:
    for status, response in OPERATIONS[name]["responses"].items():
        if status != "200":
            told = response["content"]["application/json"]
            forms = told["schema"].get("anyOf", [told["schema"]])
            seen = set()
            for example in told["examples"].values():
                made = TypeAdapter(reduce(or_, map(model, forms))).validate_python(example["value"])
                assert made.model_dump(mode="json", exclude_unset=True) == example["value"], "no field more or less"
                seen.add(type(made))
            assert len(seen) == len(forms), status
            assert response["description"]


def test_what_is_told_anything_says_in_its_own_form_when_it_is_malformed() -> None:
    for name, operation in OPERATIONS.items():
        told = bool(operation.get("parameters") or operation.get("requestBody"))
        assert ("422" in operation["responses"]) == told, name
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"], "FastAPI's, which has other fields"


def test_what_takes_a_body_names_the_refusals_of_bodies() -> None:
    for name, operation in OPERATIONS.items():
        assert ("415" in operation["responses"]) == ("requestBody" in operation), name
        assert ("413" in operation["responses"]) == (not name.startswith("get ")), f"{name}: its body is read"


def test_what_layers_and_ray_serve_refuse_is_named_everywhere() -> None:
    for name, operation in OPERATIONS.items():
        assert {"400", "408", "503"} <= set(operation["responses"]), name
        for status, response in operation["responses"].items():
            expected = {"X-Request-ID", "Retry-After"} if status in ("429", "503") else {"X-Request-ID"}
            assert set(response["headers"]) == expected, (name, status)
            assert ("text/plain" in response["content"]) == (status in ("408", "503")), (name, status)


def test_a_refusal_of_one_route_is_shown_there_and_nowhere_else() -> None:
    codes = {
        (name, status): set(response["content"]["application/json"]["examples"])
        for name, operation in OPERATIONS.items()
        for status, response in operation["responses"].items()
        if status != "200"
    }
    assert codes["get /v1/users/{user_id}", "404"] == {"not_found"}
    assert codes["post /v1/recommend", "404"] == {"unknown_products"}
    assert codes["post /v1/events", "422"] == {"malformed", "unknown_products"}
    assert [name for (name, _), shown in codes.items() if "search_too_slow" in shown] == ["get /v1/products"]
    late = {name.split(" ")[1] for (name, _), shown in codes.items() if "overloaded" in shown}
    assert late == {"/v1/recommend", "/v1/explain", "/v1/products/{product_id}/similar"}, "what is due at a time"


def test_all_but_probes_name_the_key_and_its_refusals() -> None:
    for name, operation in OPERATIONS.items():
        probe = name in ("get /healthz", "get /readyz")
        assert operation.get("security") == (None if probe else [{"HTTPBearer": []}, {}]), name
        assert ({"401", "421", "429"} <= set(operation["responses"])) != probe, name
