"""The list of models, for the clients of OpenAI and of KServe alike."""

from __future__ import annotations

from echo_api import Api


def test_one_list_serves_both_kinds_of_clients(api: Api):
    told = api.get("/v1/models").json
    assert told["object"] == "list"
    assert told["models"] == ["base", "echo", "small", "thinker"]
    assert [model["id"] for model in told["data"]] == ["base", "echo", "small", "thinker"]
    for model in told["data"]:
        assert model["object"] == "model"
        assert model["owned_by"] == "pelton"
        assert model["kind"] == "language"
        assert isinstance(model["created"], int)


def test_one_model_serves_both_kinds_of_clients(api: Api):
    told = api.get("/v1/models/echo").json
    assert (told["id"], told["object"]) == ("echo", "model")
    assert (told["name"], told["ready"]) == ("echo", True)


def test_each_kind_of_client_reads_its_own_errors(api: Api):
    openai = api.get("/v1/models/nothing", authorization="Bearer sk-1")
    assert (openai.status, openai.error["code"]) == (404, "model_not_found")
    kserve = api.get("/v1/models/nothing")
    assert kserve.status == 404
    assert isinstance(kserve.json["error"], str)
