"""tritonclient, unmodified, against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")
utils = pytest.importorskip("tritonclient.utils")

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
Y = np.array([[4, 5], [10, 11]], np.float32)


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with http.InferenceServerClient(server.address) as client:
        yield client


def tensor(name: str, array: Any, kind: Any = http, **how: Any) -> Any:
    given = kind.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, **how)
    return given


def words(texts: list[str], numbers: list[int], **how: Any) -> list[Any]:
    text = np.array([[one.encode()] for one in texts], np.object_)
    return [tensor("text", text, **how), tensor("a", np.array(numbers, np.int64).reshape(-1, 1), **how)]


def test_the_server_and_its_models_are_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert not client.is_model_ready("nothing")


def test_metadata_names_what_is_sent_and_what_comes_back(client: Any) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "pelton"
    assert {"binary_tensor_data", "model_repository", "statistics", "schedule_policy"} <= set(server["extensions"])
    model = client.get_model_metadata("linear")
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert model["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
    assert client.get_model_metadata("linear", model["versions"][0]) == model


def test_the_default_call_is_binary_both_ways(client: Any) -> None:
    result = client.infer("linear", [tensor("x", X)])
    np.testing.assert_array_equal(result.as_numpy("y"), Y)
    assert "data" not in result.get_output("y")


def test_json_both_ways_works(client: Any) -> None:
    wanted = http.InferRequestedOutput("y", binary_data=False)
    result = client.infer("linear", [tensor("x", X, binary_data=False)], outputs=[wanted], request_id="seven")
    assert result.get_output("y")["data"] == Y.ravel().tolist()
    assert result.get_response()["id"] == "seven"


def test_json_in_and_binary_out_may_be_mixed(client: Any) -> None:
    result = client.infer("linear", [tensor("x", X, binary_data=False)])  # asks for binary_data_output by itself
    np.testing.assert_array_equal(result.as_numpy("y"), Y)
    text, number = words(["a", "b"], [1, 2])
    number = tensor("a", np.array([[1], [2]], np.int64), binary_data=False)
    outputs = [
        http.InferRequestedOutput("minus", binary_data=True),
        http.InferRequestedOutput("same", binary_data=False),
    ]
    result = client.infer("words", [text, number], outputs=outputs)
    assert result.as_numpy("minus").tolist() == [[-1], [-2]]
    assert result.get_output("same")["data"] == ["a", "b"]


def test_only_the_requested_outputs_come_in_the_order_asked(client: Any) -> None:
    result = client.infer("words", words(["a"], [1]), outputs=[http.InferRequestedOutput("minus")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["minus"]


@pytest.mark.parametrize("binary", [True, False])
def test_texts_come_back_as_they_went(client: Any, binary: bool) -> None:
    texts = ["", "grüße", "日本", "x" * 5000]
    result = client.infer("words", words(texts, [1, 2, 3, 4], binary_data=binary))
    assert [text.decode() for text in result.as_numpy("same").ravel()] == texts


@pytest.mark.parametrize("request_form", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_form", [None, "gzip", "deflate"])
def test_compressed_requests_and_answers_work(client: Any, request_form: str | None, answer_form: str | None) -> None:
    x = np.repeat(X, 2000, axis=0)  # large enough to be worth compressing
    result = client.infer(
        "linear",
        [tensor("x", x)],
        request_compression_algorithm=request_form,
        response_compression_algorithm=answer_form,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), np.repeat(Y, 2000, axis=0))


def test_a_version_may_be_named(client: Any) -> None:
    version = client.get_model_metadata("linear")["versions"][0]
    result = client.infer("linear", [tensor("x", X)], model_version=version)
    assert result.get_response()["model_version"] == version
    with pytest.raises(utils.InferenceServerException, match="no version 'ffff'"):
        client.infer("linear", [tensor("x", X)], model_version="ffff")


def test_fields_of_a_table_are_tensors_with_one_element_per_row(client: Any) -> None:
    config = client.get_model_config("people")
    assert [(one["name"], one["data_type"]) for one in config["input"]] == [
        ("age", "TYPE_FP64"), ("children", "TYPE_INT64"), ("member", "TYPE_BOOL"), ("country", "TYPE_STRING"),
    ]  # fmt: skip
    columns = {
        "age": np.array([40.0, 50.0]),
        "children": np.array([0, 3], np.int64),
        "member": np.array([True, False]),
        "country": np.array([b"PT", b"AT"], np.object_),
    }
    result = client.infer("people", [tensor(name, array) for name, array in columns.items()])
    assert result.as_numpy("scores").tolist() == [[0, 42], [0, 53]]


def test_a_picture_goes_as_the_bytes_of_its_file(client: Any) -> None:
    from pelton.server.pages.examples import picture

    result = client.infer("grey", [tensor("picture", np.array([picture(), picture()], np.object_))])
    assert result.as_numpy("mean").tolist() == [128, 128]


def test_priority_and_timeout_are_taken(client: Any) -> None:
    result = client.infer("linear", [tensor("x", X)], priority=1, timeout=5_000_000)
    np.testing.assert_array_equal(result.as_numpy("y"), Y)


@pytest.mark.parametrize(
    ("model", "name", "array", "says"),
    [
        ("nothing", "x", X, "unknown model 'nothing'"),
        ("linear", "z", X, "unknown input 'z'"),
        ("linear", "x", X[:, :2], "shape"),
        ("linear", "x", X.astype(np.float64), "FP64"),
        ("linear", "x", np.array([[1, 2, np.nan]], np.float32), "finite"),
    ],
)
def test_errors_can_be_read(client: Any, model: str, name: str, array: Any, says: str) -> None:
    with pytest.raises(utils.InferenceServerException, match=says):
        client.infer(model, [tensor(name, array)])


def test_statistics_count_the_rows_of_a_call_and_their_times_add_up(client: Any) -> None:
    def stats() -> Any:
        return client.get_inference_statistics("words")["model_stats"][0]

    before = stats()
    client.infer("words", words(["a", "b", "c"], [1, 2, 3]))
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    parts = after["inference_stats"]
    assert parts["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    total = sum(parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert total == pytest.approx(parts["success"]["ns"], abs=10)
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}
    assert sum(size * count for size, count in sizes.items()) == after["inference_count"]
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} == {
        "linear",
        "words",
        "people",
        "grey",
    }


def test_statistics_tell_the_time_of_calls_that_failed(client: Any) -> None:
    def fail() -> Any:
        return client.get_inference_statistics("linear")["model_stats"][0]["inference_stats"]["fail"]

    before = fail()
    with pytest.raises(utils.InferenceServerException):
        client.infer("linear", [tensor("x", np.array([[1, 2, np.nan]], np.float32))])
    after = fail()
    assert after["count"] - before["count"] == 1
    assert 0 < after["ns"] - before["ns"] < 60e9


def test_models_are_unloaded_and_loaded_again(own_server: Any) -> None:
    with http.InferenceServerClient(own_server.address) as client:
        client.unload_model("linear")
        assert not client.is_model_ready("linear")
        assert client.is_server_ready()
        states = {one["name"]: (one["state"], one["reason"]) for one in client.get_model_repository_index()}
        assert states["linear"] == ("UNAVAILABLE", "unloaded")
        assert states["words"] == ("READY", "")
        with pytest.raises(utils.InferenceServerException, match="it was unloaded"):
            client.infer("linear", [tensor("x", X)])
        client.load_model("linear")
        np.testing.assert_array_equal(client.infer("linear", [tensor("x", X)]).as_numpy("y"), Y)


def test_load_takes_a_new_version_and_no_files(
    own_server: Any, own_home: Path, add_linear: Callable[[Path, str], str]
) -> None:
    version = add_linear(own_home, "newer")[:12]
    with http.InferenceServerClient(own_server.address) as client:
        assert client.get_model_metadata("linear")["versions"] != [version]
        client.load_model("linear")
        assert client.get_model_metadata("linear")["versions"] == [version]
        assert client.infer("linear", [tensor("x", X)]).get_response()["model_version"] == version
        with pytest.raises(utils.InferenceServerException, match="pelton add"):
            client.load_model("linear", config="{}", files={"file:1/model.onnx": b"..."})
        with pytest.raises(utils.InferenceServerException, match="there is no model 'nothing'"):
            client.load_model("nothing")


def test_the_asyncio_client_works_too(server: Any) -> None:
    async def main() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(
                    client.infer("linear", [tensor("x", X + i, aio)], request_compression_algorithm="gzip")
                    for i in range(20)
                )
            )
            for i, result in enumerate(results):
                np.testing.assert_array_equal(result.as_numpy("y"), Y + 2 * i)
            assert (await client.get_model_config("linear"))["max_batch_size"] == 128
            with pytest.raises(utils.InferenceServerException, match="unknown model"):
                await client.get_model_metadata("nothing")

    asyncio.run(main())


def test_many_calls_at_once_each_get_their_own_answer(server: Any) -> None:
    with http.InferenceServerClient(server.address, concurrency=8) as client:
        calls = [client.async_infer("linear", [tensor("x", X * i)]) for i in range(64)]
        for i, call in enumerate(calls):
            np.testing.assert_array_equal(call.get_result().as_numpy("y"), Y * i)
