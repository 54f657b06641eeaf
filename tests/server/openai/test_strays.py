"""Paths and methods that are not served are told in the form that OpenAI's clients read."""

from __future__ import annotations

import json

import pytest
from echo_api import Api

KEY = {"authorization": "Bearer x"}


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/images/generations", "/v1/batches", "/v1/audio/speech"])
def test_an_endpoint_that_is_not_served_is_told_in_openais_form(api: Api, path: str):
    reply = api.ask(path, {"model": "echo", "input": "x"})
    assert (reply.status, reply.error["code"], reply.error["type"]) == (404, "unknown_url", "invalid_request_error")
    assert f"POST {path}" in reply.error["message"]
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_told_with_those_that_are_taken(api: Api, method: str):
    with api.send(method, "/v1/chat/completions") as response:
        assert response.status == 405
        assert response.headers["allow"] == "POST"
        assert json.loads(response.read())["error"]["code"] == "method_not_supported"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/", "/chat/completions", "/v1/v1/chat/completions", "/openai/v1/chat/completions",
        "/openai/deployments/echo/chat/completions?api-version=2024-10-21",
    ],
)  # fmt: skip
def test_a_path_that_is_almost_right_is_told_the_right_one(api: Api, path: str):
    reply = api.ask(path, {"model": "echo", "messages": []})
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")
    assert "Did you mean /v1/chat/completions?" in reply.error["message"]
    assert reply.headers["x-request-id"]


def test_a_models_name_with_a_slash_is_no_model(api: Api):
    reply = api.get("/v1/models/org/name", **KEY)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


def test_clients_of_kserve_get_an_error_that_is_a_text(api: Api):
    assert isinstance(api.get("/v1/models/org/name").json["error"], str)
    assert api.get("/v1/models/echo:predict").status == 405


def test_a_version_can_be_asked_for_as_a_model(api: Api):
    version = api.get("/v1/models/echo").json["version"]
    told = api.get(f"/v1/models/echo:{version}").json
    assert (told["id"], told["object"], told["version"]) == (f"echo:{version}", "model", version)
    missing = api.get("/v1/models/echo:0123", **KEY)
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
