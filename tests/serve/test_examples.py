"""Every route of the OpenAPI document shows what it takes and what it answers, in the form that it has."""

from typing import Any

import pytest
from pydantic import BaseModel

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


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_answer_is_shown_as_it_is_given(name: str) -> None:
    responses = OPERATIONS[name]["responses"]
    shown = responses["200"]["content"]["application/json"]
    example = shown["example"]
    model: type[BaseModel] = getattr(api, shown["schema"]["$ref"].rpartition("/")[2])
    assert shape(model.model_validate(example).model_dump(mode="json")) == shape(example), "no field more or less"
    for status, response in responses.items():
        if status not in ("200", "422"):
            assert response["content"]["application/json"]["example"]["error"]
            assert response["description"]


def test_what_takes_a_body_names_the_refusals_of_bodies() -> None:
    for name, operation in OPERATIONS.items():
        assert ({"408", "413", "415"} <= set(operation["responses"])) == ("requestBody" in operation), name


def test_all_but_probes_name_the_key_and_its_refusals() -> None:
    for name, operation in OPERATIONS.items():
        probe = name in ("get /healthz", "get /readyz")
        assert operation.get("security") == (None if probe else [{"HTTPBearer": []}, {}]), name
        assert ({"401", "429"} <= set(operation["responses"])) != probe, name
