from __future__ import annotations

import hashlib
import http.server
import json
import struct
import threading

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from pelton import language
from pelton.errors import SourceInvalid, Unsupported
from pelton.importers import Options, add
from pelton.importers.language_folder import parameters
from pelton.importers.language_vocabulary import tokenizer_of
from pelton.language import gguf

ECHO = Options(settings={"engine": "echo"})
SHA = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}


def safetensors(shapes):
    """A file with zeros."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


@pytest.fixture
def model_folder(tmp_path, gguf_file):
    """A Hugging Face folder; names of files and their contents may be changed (None takes one away)."""

    def make(**changes):
        folder = tmp_path / "my-model"
        folder.mkdir(exist_ok=True)
        tokenizer = json.loads(tokenizer_of(gguf.read(gguf_file("vocabulary.gguf"))))
        (tmp_path / "vocabulary.gguf").unlink()
        template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        files = {
            "config.json": LLAMA,
            "generation_config.json": {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [2, 0]},
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": {"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|im_end|>"},
            "chat_template.jinja": template,
            "model.safetensors": safetensors({"a": [400, 8], "b": [8]}),
            **changes,
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if content is None:
                path.unlink(missing_ok=True)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return make


def test_a_folder_of_safetensors_is_for_torch(model_folder, registry):
    package = add(str(model_folder()), registry, ECHO)
    assert (package.name, package.manifest.file) == ("my-model", "model.safetensors")
    card = language.load(package).card
    assert (card.context, card.vocab_size, card.architecture, card.quantization) == (128, 400, "llama", "BF16")
    assert (card.parameters, card.eos, card.bos, card.stop_tokens) == (400 * 8 + 8, 2, 0, (0, 2))
    assert card.defaults == {"temperature": 0.6, "top_p": 0.95}
    assert language.load(package).encode_chat([{"role": "user", "content": "the"}])[0] == 1
    assert (package.folder / "config.json").is_file()


def test_without_being_told_safetensors_go_to_torch_and_graphs_to_openvino(model_folder, registry, monkeypatch):
    from pelton.importers import language_draft

    monkeypatch.setattr(language_draft, "prove", lambda package: "")
    assert add(str(model_folder()), registry, Options()).manifest.options == {"engine": "torch"}
    xml = '<net><rt_info><weight_compression><mode value="int4_sym"/></weight_compression></rt_info></net>'
    folder = model_folder(**{"openvino_model.xml": xml, "openvino_model.bin": b"w"})
    package = add(str(folder), registry, Options())
    assert (package.manifest.file, package.manifest.options) == ("openvino_model.xml", {"engine": "openvino"})
    assert language.load(package).card.quantization == "int4_sym"
    assert not (package.folder / "model.safetensors").exists()


def test_shards_come_with_their_index(model_folder, registry):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shards = {"model-1.safetensors": safetensors({"a": [400, 8]}), "model-2.safetensors": safetensors({"b": [8]})}
    changes = {"model.safetensors": None, "model.safetensors.index.json": index, **shards}
    package = add(str(model_folder(**changes)), registry, ECHO)
    assert language.load(package).card.parameters == 400 * 8 + 8
    assert sorted(path.name for path in package.folder.glob("*.safetensors")) == sorted(shards)
    with pytest.raises(SourceInvalid, match=r"names model-2\.safetensors; the folder is incomplete"):
        add(str(model_folder(**{**changes, "model-2.safetensors": None})), registry, ECHO)


def test_templates_are_found_in_every_place_where_they_may_be(model_folder, registry):
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "{{ tools }} [TOOL_CALLS]"}]
    folder = model_folder(**{"chat_template.jinja": None, "tokenizer_config.json": {"chat_template": named}})
    card = language.load(add(str(folder), registry, ECHO)).card
    assert (card.chat_template, card.tool_style, card.tools_in_template) == ("one", "mistral", True)
    folder = model_folder(**{"chat_template.jinja": None, "chat_template.json": {"chat_template": "two"}})
    assert language.load(add(str(folder), registry, ECHO)).card.chat_template == "two"


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"config.json": {**LLAMA, "architectures": ["BertModel"]}}, Unsupported, "BertModel is an encoder"),
        (
            {"config.json": {**LLAMA, "model_type": "mamba9"}},
            Unsupported,
            "'mamba9' is not supported; supported: llama",
        ),
        ({"config.json": {"model_type": "llama", "max_position_embeddings": 9}}, Unsupported, "config.json lacks"),
        ({"config.json": {**LLAMA, "max_position_embeddings": None}}, SourceInvalid, "max_position_embeddings"),
        ({"config.json": "{"}, SourceInvalid, "config.json"),
        ({"tokenizer.json": None}, SourceInvalid, "has no tokenizer.json: save"),
        ({"model.safetensors": b"\x10\0\0\0\0\0\0\0{}"}, SourceInvalid, "no safetensors file"),
        ({"model.safetensors": safetensors({"a": [400, 8]})[:-1]}, SourceInvalid, "cut short"),
        ({"openvino_model.xml": "<net/>"}, SourceInvalid, "no openvino_model.bin"),
    ],
)
def test_folders_that_cannot_be_served_are_refused_with_the_mend(changes, error, why, model_folder, registry):
    with pytest.raises(error, match=why):
        add(str(model_folder(**changes)), registry, ECHO)
    assert registry.models() == []


def test_a_folder_with_one_gguf_file_is_that_file(gguf_file, tmp_path, registry):
    folder = tmp_path / "some-gguf"
    folder.mkdir()
    gguf_file().rename(folder / "model-q4.gguf")
    (folder / "README.md").write_text("hello")
    assert add(str(folder), registry, ECHO).name == "some-gguf"
    (folder / "other.gguf").write_bytes(b"")
    with pytest.raises(SourceInvalid, match=r"several GGUF files: add one of them \(model-q4.gguf, other.gguf\)"):
        add(str(folder), registry, ECHO)


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 8) + b'{"a": 1}'])
def test_headers_that_lie_are_refused(header, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header)
    with pytest.raises(SourceInvalid):
        parameters(path)


@pytest.fixture
def hub(monkeypatch):
    """A model hub on this machine: name of a file -> contents."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix(f"/me/model/resolve/{SHA}/")
            if self.path.startswith("/api/"):
                siblings = [
                    {
                        "rfilename": name,
                        "size": len(data),
                        "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)},
                    }
                    for name, data in files.items()
                ]
                body = json.dumps({"sha": SHA, "siblings": siblings, "tags": ["license:apache-2.0"]}).encode()
            else:
                body = files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_gguf_file_on_a_hub_is_a_source(hub, gguf_file, registry):
    data = gguf_file(general__license=None).read_bytes()
    hub |= {"small-q4.gguf": data, "small-q8.gguf": data, "config.json": b"{}"}
    package = add("hf:me/model/small-q4.gguf", registry, ECHO)
    assert (package.name, package.manifest.license) == ("small-q4", "apache-2.0")
    assert package.manifest.source == f"hf:me/model@{SHA} (apache-2.0)"
    with pytest.raises(SourceInvalid, match="several GGUF files"):
        add("hf:me/model", registry, ECHO)


def test_a_language_model_on_a_hub_is_fetched_as_far_as_it_is_needed(hub, model_folder, registry):
    folder = model_folder()
    hub |= {path.name: path.read_bytes() for path in folder.iterdir()}
    hub["pytorch_model.bin"] = b"never fetched"
    package = add("hf:me/model", registry, ECHO)
    assert (package.name, package.manifest.file) == ("model", "model.safetensors")
    assert not list((registry.home / "cache").rglob("pytorch_model.bin"))
