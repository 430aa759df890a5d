"""The document says what routes declare, in the words of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, Field

from clipfleet_gateway.web.about.openapi import document
from clipfleet_gateway.web.operations import Form, Operation, Raw


class Cat(BaseModel):
    """One cat."""

    name: str = Field(description="what it listens to")
    age: int | None = None


class Dog(BaseModel):
    name: str


class Wanted(BaseModel):
    limit: int = Field(20, ge=1, le=100, description="so many at most")
    order: Literal["asc", "desc"] = "asc"


class Upload(BaseModel):
    file: bytes
    purpose: str


CATS = Operation("GET", "/v1/cats", "listCats", "List cats.", answers={200: list[Cat]}, query=Wanted)
CAT = Operation(
    "GET", "/v1/cats/{cat:.+}", "getCat", "Find a cat.",
    answers={200: Cat | Dog}, path_parameters={"cat": "its name"}, errors=(404,),
)  # fmt: skip
MAKE = Operation(
    "POST", "/v1/cats", "createCat", "Make a cat.",
    answers={201: Cat}, body=Cat, headers={"Idempotency-Key": "makes one cat of several requests"},
)  # fmt: skip
SHOW = Operation(
    "POST", "/v1/photos", "uploadPhoto", "Show it.",
    answers={200: Raw("image/jpeg", "the same")}, body=Form(Upload),
)  # fmt: skip
HEALTH = Operation("GET", "/healthz", "getHealth", "Say that it lives.", answers={200: Dog})
ALL = (CATS, CAT, MAKE, SHOW, HEALTH)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return document(ALL)


def test_it_is_valid(made: dict[str, Any]) -> None:
    validate(made)


def test_every_operation_is_there_once(made: dict[str, Any]) -> None:
    names = [found["operationId"] for path in made["paths"].values() for found in path.values()]

    assert sorted(names) == sorted(operation.name for operation in ALL)
    assert [*made["paths"]] == ["/v1/cats", "/v1/cats/{cat}", "/v1/photos", "/healthz"]


def test_parameters_say_where_they_stand(made: dict[str, Any]) -> None:
    (limit, order) = made["paths"]["/v1/cats"]["get"]["parameters"]
    (cat,) = made["paths"]["/v1/cats/{cat}"]["get"]["parameters"]
    (key,) = made["paths"]["/v1/cats"]["post"]["parameters"]

    assert (limit["in"], limit["required"], limit["description"]) == ("query", False, "so many at most")
    assert limit["schema"] == {"default": 20, "maximum": 100, "minimum": 1, "type": "integer"}
    assert order["schema"]["enum"] == ["asc", "desc"]
    assert (cat["in"], cat["required"]) == ("path", True)
    assert (key["in"], key["required"], key["name"]) == ("header", False, "Idempotency-Key")
    assert "Wanted" not in made["components"]["schemas"], "its fields are the parameters"


def test_what_is_answered_has_all_fields_and_what_is_asked_needs_not(made: dict[str, Any]) -> None:
    (asked,) = made["paths"]["/v1/cats"]["post"]["requestBody"]["content"].values()
    (answered,) = made["paths"]["/v1/cats"]["post"]["responses"]["201"]["content"].values()
    schemas = made["components"]["schemas"]

    assert schemas[asked["schema"]["$ref"].rpartition("/")[2]]["required"] == ["name"]
    assert schemas[answered["schema"]["$ref"].rpartition("/")[2]]["required"] == ["name", "age"]


def test_a_form_has_a_file(made: dict[str, Any]) -> None:
    (media_type,) = made["paths"]["/v1/photos"]["post"]["requestBody"]["content"]

    assert media_type == "multipart/form-data"
    assert made["components"]["schemas"]["Upload"]["properties"]["file"]["format"] == "binary"


def test_errors_are_those_of_all_of_keys_of_bodies_and_its_own(made: dict[str, Any]) -> None:
    def errors(path: str, method: str) -> set[str]:
        return {
            status
            for status, answer in made["paths"][path][method]["responses"].items()
            if answer == {"$ref": f"#/components/responses/{status}"}
        }

    of_keys = {"400", "401", "421", "429", "500", "503"}
    assert errors("/v1/cats", "get") == of_keys
    assert errors("/v1/cats/{cat}", "get") == of_keys | {"404"}
    assert errors("/v1/cats", "post") == of_keys | {"408", "413", "415", "417"}
    assert errors("/healthz", "get") == {"421", "500"}
    assert made["paths"]["/healthz"]["get"]["security"] == []
    assert "Retry-After" in made["components"]["responses"]["429"]["headers"]


def test_a_parameter_of_a_path_must_be_described() -> None:
    with pytest.raises(ValueError, match="describe each parameter"):
        Operation("GET", "/v1/cats/{cat}", "getCat", "Find a cat.", answers={200: Cat})
