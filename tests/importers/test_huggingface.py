from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import logging
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image as Pillow
from tokenizers import Tokenizer, models, pre_tokenizers

from pelton.errors import ArtifactCorrupt, PackageInvalid, SourceInvalid
from pelton.importers import Options, add
from pelton.importers.huggingface import image_block, text_block
from pelton.packages.preprocess import Crop, Image, Labels, Resize, Text
from pelton.runtimes import contract
from pelton.transforms import compile_finish, compile_prepare
from pelton.types import Signature, TensorSpec

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A model hub on this machine. `cuts`: the first answers with a large file end after so many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lies: dict[str, str] = {}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.tokens: list[tuple[str, str | None]] = []
        self.redirect = ""
        self.ignores_ranges = False
        self.status = 200

    def index(self) -> bytes:
        siblings = []
        for name, data in self.files.items():
            digest = self.lies.get(name, hashlib.sha256(data).hexdigest())
            lfs = {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 1}} if name.endswith(".onnx") else {}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "x", **lfs})
        return json.dumps(
            {"sha": SHA, "siblings": siblings, "tags": ["onnx", "license:mit"], "private": False}
        ).encode()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.tokens.append((request.path, request.headers.get("Authorization")))
        prefix = f"/me/model/resolve/{SHA}/"
        if self.status != 200:
            return self.send(request, self.status, b"no")
        if request.path == "/api/models/me/model/revision/main?blobs=true":
            return self.send(request, 200, self.index())
        name = request.path.removeprefix(prefix).removeprefix("/elsewhere/")
        if name not in self.files:
            return self.send(request, 404, b"")
        if self.redirect and request.path.startswith(prefix):
            return self.send(request, 302, b"", Location=f"{self.redirect}/elsewhere/{name}")
        return self.file(request, self.files[name])

    def file(self, request: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and not self.ignores_ranges else 0
        body = data[start:]
        cut = self.cuts.pop(0) if self.cuts and len(data) > 1000 else len(body)
        self.send(request, 206 if start else 200, body[:cut], length=len(body))

    @staticmethod
    def send(request, status, body, length=None, **headers):
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(body)


def serve(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hub.answer(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    server = serve(hub)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.port = server.server_port
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def large(onnx_file):
    """A model of 40 kB."""
    weights = {"w": np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    info = helper.make_tensor_value_info
    return onnx_file([node], [info("x", FLOAT, ["n", 100])], [info("y", FLOAT, ["n", 100])], weights).read_bytes()


def test_a_repository_becomes_a_model(hub, registry, large):
    hub.files = {"README.md": b"", "onnx/model.onnx": large, "onnx/model_quantized.onnx": b"x"}
    package = add("hf:me/model", registry, Options(p99_ms=9))
    assert package.name == "model"
    assert package.manifest.source == f"hf:me/model@{SHA} (mit)"
    count = len(hub.ranges)
    assert add("hf:me/model@main/onnx/model.onnx", registry, Options(p99_ms=9)).version == package.version
    assert len(hub.ranges) == count  # the file came from the cache


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, registry, large):
    hub.files = {"model.onnx": large}
    hub.cuts = [5000, 1, 20000]
    add("hf:me/model", registry, Options())
    assert hub.ranges == [None, "bytes=5000-", "bytes=5001-", "bytes=25001-"]


def test_a_download_goes_on_after_a_restart(hub, registry, large):
    hub.files = {"model.onnx": large}
    hub.cuts = [7000, 0, 0, 0, 0, 0]
    with pytest.raises(SourceInvalid, match="breaks off"):
        add("hf:me/model", registry, Options())
    hub.cuts = []
    add("hf:me/model", registry, Options())
    assert hub.ranges[-1] == "bytes=7000-"


def test_a_hub_that_sends_all_of_it_again_is_understood(hub, registry, large):
    hub.files = {"model.onnx": large}
    hub.cuts = [5000]
    hub.ignores_ranges = True
    assert add("hf:me/model", registry, Options()).file.read_bytes() == large


def test_a_file_with_another_digest_is_thrown_away(hub, registry, large):
    hub.files = {"model.onnx": large}
    hub.lies = {"model.onnx": "0" * 64}
    with pytest.raises(ArtifactCorrupt, match="sha256"):
        add("hf:me/model", registry, Options())
    assert not [path for path in (registry.home / "cache").rglob("model.onnx*") if path.suffix != ".lock"]
    assert registry.models() == []


def test_the_token_goes_to_the_hub_alone_and_into_no_log(hub, registry, large, monkeypatch, caplog):
    other = Hub()
    hub.files = other.files = {"model.onnx": large}
    server = serve(other)
    hub.redirect = f"http://localhost:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    caplog.set_level(logging.DEBUG)
    hub.cuts = [100]
    add("hf:me/model", registry, Options())
    server.shutdown()
    server.server_close()
    assert {token for _, token in hub.tokens} == {"Bearer hf_secret"}
    assert other.tokens
    assert {token for _, token in other.tokens} == {None}
    assert "hf_secret" not in caplog.text
    hub.status = 403
    with pytest.raises(SourceInvalid, match="HF_TOKEN") as caught:
        add("hf:me/model", registry, Options())
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:me/model", "several ONNX files"),
        ("hf:me/model/c.onnx", "no ONNX file 'c.onnx'"),
        ("hf:me/other", "404"),
        ("hf:me/model@v2", "404"),
        ("hf:model", "hf:owner/repository"),
        ("hf:me/model/../../x", "hf:owner/repository"),
    ],
)
def test_what_is_not_there_is_told(hub, registry, source, message):
    hub.files = {"a.onnx": b"x", "b.onnx": b"x"}
    with pytest.raises(SourceInvalid, match=message):
        add(source, registry, Options())


def test_a_repository_that_names_files_outside_of_itself_is_refused(hub, registry):
    hub.files = {"../../../evil.onnx": b"x"}
    with pytest.raises(SourceInvalid, match="outside"):
        add("hf:me/model", registry, Options())
    assert not list(registry.home.parent.rglob("evil.onnx"))


def test_an_unreachable_hub_and_an_odd_address_are_told(registry, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceInvalid, match="cannot be reached"):
        add("hf:me/model", registry, Options())
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")
    with pytest.raises(SourceInvalid, match="HF_ENDPOINT"):
        add("hf:me/model", registry, Options())


def answer(package, fields):
    prepared = compile_prepare(package)(fields)
    model = contract.load(package, contract.RuntimeOptions())
    return compile_finish(package)(model.run(prepared.inputs), prepared.counts)


def test_a_text_classifier_takes_texts_and_answers_labels(hub, registry, onnx_file):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2, "film": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    info = helper.make_tensor_value_info
    table = np.array([[0, 0], [0, 3], [3, 0], [0, 0]], np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["wide"]),
        helper.make_node("Mul", ["each", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    inputs = [info("input_ids", INT64, ["b", "s"]), info("attention_mask", INT64, ["b", "s"])]
    weights = {"table": table, "last": np.array([2]), "middle": np.array([1])}
    model = onnx_file(nodes, inputs, [info("logits", FLOAT, ["b", 2])], weights)
    config = {"id2label": {"0": "negative", "1": "positive"}, "max_position_embeddings": 64, "pad_token_id": 3}
    hub.files = {
        "model.onnx": model.read_bytes(),
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": words.to_str().encode(),
    }
    package = add("hf:me/model", registry, Options())
    block = Text("text", ids="input_ids", mask="attention_mask", max_tokens=64, truncate=True, pad_id=3)
    assert package.manifest.preprocess == (block,)
    assert [spec.pad for spec in package.manifest.signature.inputs] == [3.0, 0.0]
    best = [row["labels"][0] for row in answer(package, {"text": ["good film", "bad bad film film film"]})]
    assert [row["label"] for row in best] == ["positive", "negative"]
    assert best[0]["score"] == pytest.approx(1 / (1 + np.exp(-3)))


def test_an_image_classifier_takes_pictures(hub, registry, onnx_file):
    """The mean of each channel is its score."""
    info = helper.make_tensor_value_info
    model = onnx_file(
        [helper.make_node("ReduceMean", ["pixel_values"], ["logits"], axes=[2, 3], keepdims=0)],
        [info("pixel_values", FLOAT, ["b", "c", "h", "w"])],
        [info("logits", FLOAT, ["b", "k"])],
    )
    steps = {
        "do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
    }  # fmt: skip
    hub.files = {
        "model.onnx": model.read_bytes(),
        "config.json": json.dumps({"id2label": {"0": "red", "1": "green", "2": "blue"}}).encode(),
        "preprocessor_config.json": json.dumps(steps).encode(),
    }
    package = add("hf:me/model", registry, Options())
    assert package.manifest.signature.inputs == (TensorSpec("pixel_values", "FP32", (3, 32, 32)),)
    assert package.manifest.postprocess == (Labels("logits", labels=("red", "green", "blue"), top=3, softmax=True),)
    file = io.BytesIO()
    Pillow.new("RGB", (80, 60), (0, 255, 0)).save(file, "PNG")
    found = answer(package, {"image": [{"b64": base64.b64encode(file.getvalue()).decode()}]})[0]["labels"]
    assert found[0]["label"] == "green"
    scores = np.exp([-2, 2, -2]) / np.exp([-2, 2, -2]).sum()
    assert found[0]["score"] == pytest.approx(scores[1], rel=1e-3)


@pytest.mark.parametrize(
    ("config", "resize", "crop"),
    [
        ({"size": 224, "do_resize": True, "image_mean": [0.5], "image_std": [0.5]}, Resize(224, 224), None),
        ({"size": {"height": 10, "width": 20}, "resample": 0}, Resize(10, 20, interpolation="nearest"), None),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, Resize(256, 256, "shorter"), Crop(224, 224)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, Resize(256, 256, "shorter"), Crop(224, 224)),
        ({"size": 224, "do_resize": False}, None, None),
    ],
)
def test_the_sizes_of_pictures_are_read_in_every_form(config, resize, crop):
    block = image_block(config)
    assert isinstance(block, Image)
    assert (block.resize, block.crop) == (resize, crop)


@pytest.mark.parametrize("config", [{"size": "big"}, {"size": {"longest_edge": 3}}, {"size": 3, "resample": 9}])
def test_sizes_that_are_not_understood_are_told(config):
    with pytest.raises(SourceInvalid, match=r"preprocessor_config\.json"):
        image_block(config)


def test_positions_of_roberta_start_after_the_padding():
    signature = Signature((TensorSpec("input_ids", "INT64", (-1,)),), (TensorSpec("y", "FP32"),))
    assert text_block({"max_position_embeddings": 130, "model_type": "roberta"}, signature).max_tokens == 128
    assert text_block({}, signature).max_tokens == 512


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 20000])
def test_a_damaged_configuration_is_told(registry, tmp_path, large, content):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/model.onnx").write_bytes(large)
    (tmp_path / "repo/config.json").write_bytes(content)
    with pytest.raises(PackageInvalid, match=r"config\.json"):
        add(str(tmp_path / "repo"), registry, Options())


def test_a_folder_laid_out_like_a_repository_is_read(registry, tmp_path, large):
    (tmp_path / "my repo/onnx").mkdir(parents=True)
    (tmp_path / "my repo/onnx/model.onnx").write_bytes(large)
    assert add(str(tmp_path / "my repo"), registry, Options()).name == "my-repo"
