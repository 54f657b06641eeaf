"""KServe's InferenceRESTClient, unmodified, against a real server process."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import types
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest


def client_module() -> Any:
    """`kserve.inference_client` without the package's `__init__`, which imports a whole server, Kubernetes' client and a
    parser of this process's arguments."""
    if "kserve" not in sys.modules:
        spec = importlib.util.find_spec("kserve")
        if spec is None:
            pytest.skip("kserve is not installed")
        package = types.ModuleType("kserve")
        package.__path__ = list(spec.submodule_search_locations or [])
        package.__spec__ = spec
        sys.modules["kserve"] = package
    pytest.importorskip("httpx")
    pytest.importorskip("grpc")
    return pytest.importorskip("kserve.inference_client", exc_type=ImportError)


@pytest.fixture(scope="module")
def kserve() -> Any:
    arguments, sys.argv = sys.argv, ["kserve"]
    try:
        return client_module()
    finally:
        sys.argv = arguments


@pytest.fixture
def talk(kserve: Any) -> Callable[..., None]:
    def run(protocol: str, test: Callable[[Any], Awaitable[None]]) -> None:
        async def main() -> None:
            async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol=protocol, verify=False)) as client:
                await test(client)

        asyncio.run(main())

    return run


def tensors(**arrays: Any) -> list[Any]:
    from kserve.protocol.infer_type import InferInput

    datatypes = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64", np.dtype(object): "BYTES"}
    given = []
    for name, array in arrays.items():
        one = InferInput(name, list(array.shape), datatypes[array.dtype])
        one.set_data_from_numpy(array)
        given.append(one)
    return given


def test_v2_health_is_read_from_the_body(server: Any, talk: Callable[..., None]) -> None:
    async def test(client: Any) -> None:
        assert await client.is_server_live(server.url) is True
        assert await client.is_server_ready(server.url) is True
        assert await client.is_model_ready(server.url, "linear") is True
        assert await client.is_model_ready(server.url, "nothing") is False

    talk("v2", test)


def test_v2_infer_works_binary_as_it_is_by_default(server: Any, talk: Callable[..., None]) -> None:
    async def test(client: Any) -> None:
        from kserve.protocol.infer_type import InferRequest

        x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
        answer = await client.infer(server.url, InferRequest("linear", tensors(x=x)), model_name="linear")
        assert answer.outputs[0].as_numpy().tolist() == [[4, 5], [10, 11]]
        assert answer.model_name == "linear"
        texts = np.array([["grüße".encode()], [b""]], object)
        request = InferRequest("words", tensors(text=texts, a=np.array([[1], [2]], np.int64)), request_id="r1")
        answer = await client.infer(server.url, request, model_name="words")
        assert answer.id == "r1"
        assert answer.get_output_by_name("minus").as_numpy().tolist() == [[-1], [-2]]

    talk("v2", test)


def test_v2_json_works(server: Any, talk: Callable[..., None]) -> None:
    async def test(client: Any) -> None:
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [[1, 2, 3]]}]}
        answer = await client.infer(server.url, body, model_name="linear")
        assert answer.outputs[0].data == [4, 5]

    talk("v2", test)


def test_v1_works(server: Any, talk: Callable[..., None]) -> None:
    async def test(client: Any) -> None:
        assert await client.is_server_live(server.url) is True
        assert await client.is_model_ready(server.url, "linear") is True
        answer = await client.infer(server.url, {"instances": [[1, 2, 3], [4, 5, 6]]}, model_name="linear")
        assert answer == {"predictions": [[4, 5], [10, 11]]}

    talk("v1", test)


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_errors_can_be_read(server: Any, talk: Callable[..., None], protocol: str) -> None:
    import httpx

    async def test(client: Any) -> None:
        with pytest.raises(httpx.HTTPStatusError, match="unknown model 'nothing'"):
            await client.infer(server.url, {"instances": [[1, 2, 3]], "inputs": []}, model_name="nothing")
        with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
            await client.infer(server.url, {"instances": 3}, model_name="linear")

    talk(protocol, test)


def test_a_model_that_is_not_ready_is_told_apart_from_one_that_is_not_there(
    own_server: Any, talk: Callable[..., None]
) -> None:
    import httpx

    async def test(client: Any) -> None:
        httpx.post(own_server.url + "/v2/repository/models/linear/unload").raise_for_status()
        assert await client.is_model_ready(own_server.url, "linear") is False
        with pytest.raises(httpx.HTTPStatusError, match="unknown model"):
            await client.is_model_ready(own_server.url, "nothing")

    talk("v1", test)
