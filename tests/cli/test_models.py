"""`pelton add`, `list` and `remove`: what goes in and out of the registry, and what is said when it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Pelton = Callable[..., Any]


class TestAdd:
    def test_a_model_is_added_and_its_shape_is_told(self, pelton: Pelton, home: Path, linear: Path) -> None:
        done = pelton("add", linear, "--home", home)
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        assert re.fullmatch(r"linear:[0-9a-f]{12}", lines[0])
        assert [line.split() for line in lines[1:3]] == [["input", "x:", "FP32[3]"], ["output", "y:", "FP32[2]"]]
        assert lines[3] == "serve it: pelton serve linear"

    def test_the_same_file_twice_is_the_same_version(self, pelton: Pelton, home: Path, linear: Path) -> None:
        first = pelton("add", linear, "--home", home)
        again = pelton("add", linear, "--home", home)
        assert again == first
        [entry] = pelton("list", "linear", "--home", home, "--json").lines[0]
        assert first.out.startswith(f"linear:{entry['version'][:12]}\n")

    def test_name_target_and_batches_may_be_given(self, pelton: Pelton, home: Path, linear: Path) -> None:
        flags = ["--name", "sums", "--p99-ms", "12.5", "--objective", "cost", "--max-rows", "4"]
        done = pelton("add", linear, "--home", home, *flags)
        assert done.code == 0
        assert done.out.startswith("sums:")
        other = pelton("add", linear, "--home", home, "--name", "sums")
        assert other.out != done.out  # another target is another version

    def test_options_of_a_runtime_that_has_none_are_refused(self, pelton: Pelton, home: Path, linear: Path) -> None:
        done = pelton("add", linear, "--home", home, "--option", "engine=openvino")
        assert (done.code, "have no options" in done.err) == (1, True)
        for wrong in ("engine", "=x", "a b=1"):
            done = pelton("add", linear, "--home", home, "--option", wrong)
            assert (done.code, "NAME=VALUE" in done.err) == (1, True)

    def test_the_home_may_come_from_the_environment(
        self, pelton: Pelton, home: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PELTON_HOME", str(home))
        assert pelton("add", linear).code == 0
        assert pelton("list", "--json").lines == pelton("list", "--home", home, "--json").lines

    def test_a_python_class_needs_trust(self, pelton: Pelton, home: Path, tmp_path: Path) -> None:
        source = tmp_path / "service.py"
        source.write_text(
            "class Model:\n"
            "    inputs = {'x': 'FP32[1]'}\n"
            "    outputs = {'y': 'FP32[1]'}\n"
            "    def predict(self, x):\n"
            "        return x * 2\n"
        )
        done = pelton("add", f"{source}:Model", "--home", home)
        assert (done.code, done.out) == (1, "")
        assert "--trust" in done.err
        assert pelton("add", f"{source}:Model", "--home", home, "--trust").code == 0

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("missing.onnx", "missing.onnx"),
            ("missing/folder", "missing/folder"),
            ("nothing", "nothing"),
            ("", ""),
            ("empty.onnx", "empty.onnx"),
            ("text.onnx", "text.onnx"),
            ("empty", "empty"),
            ("broken", "pelton.toml"),
            ("pypi:", "pypi:"),
            ("bad\0name.onnx", "bad"),
        ],
    )
    def test_a_source_that_is_none_is_named(
        self, pelton: Pelton, home: Path, tmp_path: Path, source: str, says: str
    ) -> None:
        (tmp_path / "empty.onnx").write_bytes(b"")
        (tmp_path / "text.onnx").write_text("no model")
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "pelton.toml").write_text("= no toml")
        done = pelton("add", source, "--home", home)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("pelton: ")
        assert says in done.err
        assert pelton("list", "--home", home, "--json").lines == [[]]

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--name", "a/b"], "a/b"),
            (["--name", "../up"], "../up"),
            (["--name", "a b"], "a b"),
            (["--name", "x" * 200], "xxx"),
            (["--p99-ms", "0"], "p99"),
            (["--p99-ms", "-5"], "p99"),
            (["--p99-ms", "nan"], "p99"),
            (["--max-rows", "0"], "max"),
            (["--max-rows", "-1"], "max"),
            (["--example", "missing.json"], "missing.json"),
        ],
    )
    def test_a_wrong_value_is_told_with_its_name(
        self, pelton: Pelton, home: Path, linear: Path, flags: list[str], says: str
    ) -> None:
        done = pelton("add", linear, "--home", home, *flags)
        assert (done.code, done.out) == (1, ""), done
        assert done.err.startswith("pelton: ")
        assert says in done.err

    @pytest.mark.parametrize(
        ("content", "says"),
        [("no json", "JSON"), ("[]", ""), ("[{}]", "x"), ('{"x": [1, 2]}', "x"), ("[1, 2]", "")],
    )
    def test_an_example_that_does_not_fit_the_model_is_told(
        self, pelton: Pelton, home: Path, linear: Path, tmp_path: Path, content: str, says: str
    ) -> None:
        example = tmp_path / "rows.json"
        example.write_text(content)
        done = pelton("add", linear, "--home", home, "--example", example)
        assert (done.code, done.out) == (1, ""), done
        assert says in done.err

    def test_rows_of_an_example_are_recorded(self, pelton: Pelton, home: Path, linear: Path, tmp_path: Path) -> None:
        example = tmp_path / "rows.json"
        example.write_text('[{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]')
        assert pelton("add", linear, "--home", home, "--example", example).code == 0
        assert pelton("predict", "linear", "--home", home).lines == [{"y": [4.0, 5.0]}]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["add"],
            ["add", "a", "b"],
            ["add", "a", "--p99-ms", "soon"],
            ["add", "a", "--max-rows", "1.5"],
            ["add", "a", "--objective", "speed"],
            ["add", "a", "--colour", "red"],
        ],
    )
    def test_a_wrong_call_is_a_2_with_the_usage(self, pelton: Pelton, arguments: list[str]) -> None:
        done = pelton(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("usage: pelton")


class TestList:
    def test_an_empty_home_says_what_to_do(self, pelton: Pelton, home: Path) -> None:
        done = pelton("list", "--home", home)
        assert done.code == 0
        assert "pelton add" in done.out
        assert pelton("list", "--home", home, "--json").out == "[]\n"

    def test_models_stand_in_columns_with_their_newest_version(
        self, pelton: Pelton, full_home: Path, linear: Path
    ) -> None:
        added = pelton("add", linear, "--home", full_home, "--p99-ms", "7").out.split()[0]
        done = pelton("list", "--home", full_home)
        head, *lines = done.out.splitlines()
        assert head.split()[:3] == ["MODEL", "VERSION", "ADDED"]
        assert [line.split()[0] for line in lines] == ["grey", "linear", "people", "words"]
        assert added == ":".join(lines[1].split()[:2])

    def test_one_model_is_shown_with_all_its_versions_newest_first(
        self, pelton: Pelton, full_home: Path, linear: Path
    ) -> None:
        added = pelton("add", linear, "--home", full_home, "--p99-ms", "7").out.split()[0]
        [entries] = pelton("list", "linear", "--home", full_home, "--json").lines
        assert len(entries) == 2
        assert added == f"linear:{entries[0]['version'][:12]}"
        assert entries[0]["added"] > entries[1]["added"]
        assert len(pelton("list", "linear", "--home", full_home).out.splitlines()) == 3

    @pytest.mark.parametrize("flags", [[], ["--json"]])
    def test_a_model_that_is_not_there_is_an_error(self, pelton: Pelton, models: Path, flags: list[str]) -> None:
        done = pelton("list", "nobody", "--home", models, *flags)
        assert (done.code, done.out) == (1, "")
        assert "nobody" in done.err

    def test_a_home_that_is_a_file_is_an_error(self, pelton: Pelton, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("not a folder")
        done = pelton("list", "--home", tmp_path / "file")
        assert (done.code, done.out) == (1, "")
        assert str(tmp_path / "file") in done.err


class TestRemove:
    def test_a_model_goes_with_all_its_versions(self, pelton: Pelton, full_home: Path, linear: Path) -> None:
        pelton("add", linear, "--home", full_home, "--p99-ms", "7")
        done = pelton("remove", "linear", "--home", full_home)
        assert done.code == 0
        assert re.fullmatch(r"(removed linear:[0-9a-f]{12}\n){2}", done.out)
        assert "linear" not in pelton("list", "--home", full_home).out
        assert pelton("predict", "words", "--home", full_home).code == 0  # the others stay

    def test_one_version_goes_alone(self, pelton: Pelton, full_home: Path, linear: Path) -> None:
        added = pelton("add", linear, "--home", full_home, "--p99-ms", "7").out.split()[0]
        assert pelton("remove", added, "--home", full_home).out == f"removed {added}\n"
        [[left]] = pelton("list", "linear", "--home", full_home, "--json").lines
        assert not added.endswith(left["version"][:12])

    @pytest.mark.parametrize(
        "name", ["nobody", "linear:0123456789ab", "linear:", ":abc", "a b", "../linear", "linear@"]
    )
    def test_what_is_not_there_is_an_error_and_nothing_goes(self, pelton: Pelton, full_home: Path, name: str) -> None:
        before = pelton("list", "--home", full_home, "--json").lines
        done = pelton("remove", name, "--home", full_home)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("pelton: ")
        assert pelton("list", "--home", full_home, "--json").lines == before
