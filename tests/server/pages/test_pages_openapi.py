"""The OpenAPI document is valid, and true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema")
openapi_spec_validator = pytest.importorskip("openapi_spec_validator")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def document(server: Any) -> Any:
    answer = httpx.get(server.url + "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def schema_of(document: Any, path: str, direction: str) -> Any:
    """A validator of the request or the answer of a POST; references resolve inside the document."""
    operation = document["paths"][path]["post"]
    part = operation["requestBody"] if direction == "request" else operation["responses"]["200"]
    schema = {**part["content"]["application/json"]["schema"], "components": document["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document)


def test_a_document_without_models_is_valid_too(visit: Callable[..., Any]) -> None:
    async def test(house: Any) -> None:
        openapi_spec_validator.validate((await house.ask("GET", "/openapi.json")).json)

    visit(test)


def test_every_example_fits_its_schema_and_is_answered_in_the_form_that_is_promised(server: Any, document: Any) -> None:
    tried = set()
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" not in content or "{" in path:
            continue
        schema_of(document, path, "request").validate(content["example"])
        answer = httpx.post(server.url + path, json=content["example"])
        assert answer.status_code == 200, (path, answer.text)
        schema_of(document, path, "answer").validate(answer.json())
        tried.add(path)
    assert {"/predict/people", "/predict/linear", "/v1/models/people:predict", "/v2/models/linear/infer"} <= tried


def test_the_schema_of_a_row_refuses_what_the_server_refuses(server: Any, document: Any) -> None:
    validator = schema_of(document, "/predict/people", "request")
    good = {"age": 41.5, "member": True, "country": "PT"}
    rows: list[tuple[dict[str, Any], bool]] = [
        (good, True),
        ({**good, "children": 3}, True),
        ({**good, "country": "FR"}, True),  # unknown values have a code
        ({**good, "age": 151}, False),
        ({**good, "age": "41"}, False),
        ({**good, "member": 1}, False),
        ({**good, "children": 1.5}, False),
        ({**good, "shoe": 43}, False),
        ({"age": 41.5}, False),
    ]
    for row, fits in rows:
        assert validator.is_valid(row) == fits, row
        assert (httpx.post(server.url + "/predict/people", json=row).status_code == 200) == fits, row


def test_every_get_of_the_document_is_answered(server: Any, document: Any) -> None:
    for path, item in document["paths"].items():
        if "get" in item and not path.startswith("/admin/"):  # tests of the admin API ask for those
            answer = httpx.get(server.url + path.replace("{model}", "linear"))
            assert answer.status_code == 200, path
            kind = answer.headers["content-type"].split(";")[0]
            assert kind in item["get"]["responses"]["200"]["content"], path


def test_operation_names_are_unique_and_headers_are_real(server: Any, document: Any) -> None:
    operations = [
        verb["operationId"]
        for item in document["paths"].values()
        for name, verb in item.items()
        if name != "parameters"
    ]
    assert len(set(operations)) == len(operations)
    answer = httpx.post(server.url + "/predict/linear", json={"x": [1, 2, 3]})
    promised = document["paths"]["/predict/linear"]["post"]["responses"]["200"]["headers"]
    assert all(name in answer.headers for name in promised)
