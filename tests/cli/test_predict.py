"""`pelton predict`: fields, files, standard input; in this process and through a server."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Pelton = Callable[..., Any]


@pytest.fixture(params=["here", "through a server"])
def ask(request: pytest.FixtureRequest, pelton: Pelton, models: Path) -> Pelton:
    """ask("linear", "x=[1, 2, 3]"): the same on both ways."""
    if request.param == "here":
        return lambda *arguments, **options: pelton("predict", *arguments, "--home", models, **options)
    url = request.getfixturevalue("server").url
    return lambda *arguments, **options: pelton("predict", *arguments, "--url", url, **options)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "grey.png"
    Image.new("L", (8, 8), 100).save(file)
    return file


class TestFields:
    def test_a_list_of_numbers(self, ask: Pelton) -> None:
        done = ask("linear", "x=[1, 2, 3]")
        assert (done.code, done.err, done.lines) == (0, "", [{"y": [4.0, 5.0]}])

    def test_a_text_stays_as_it_is(self, ask: Pelton) -> None:
        assert ask("words", 'text=["grüße, Ω"]').lines == [{"same": ["grüße, Ω"]}]
        assert "grüße, Ω" in ask("words", 'text=["grüße, Ω"]').out  # for people, not as escapes

    def test_several_columns_make_one_row(self, ask: Pelton) -> None:
        done = ask("people", "age=100", "member=true", "country=PT")
        assert done.code == 0
        [row] = done.lines
        assert [one["label"] for one in row["labels"]] == ["yes", "no"]

    def test_a_picture_is_read_from_its_file(self, ask: Pelton, picture: Path) -> None:
        assert ask("grey", f"picture=@{picture}").lines == [{"mean": 100.0}]

    def test_without_inputs_the_model_s_own_example_is_asked(self, ask: Pelton) -> None:
        assert ask("words").lines == [{"same": ["grüß dich"]}]
        assert [one["label"] for one in ask("people").lines[0]["labels"]] == ["yes", "no"]

    def test_a_version_may_be_named(self, ask: Pelton, pelton: Pelton, models: Path) -> None:
        [[entry]] = pelton("list", "linear", "--home", models, "--json").lines
        assert ask(f"linear:{entry['version'][:12]}", "x=[1, 2, 3]").lines == [{"y": [4.0, 5.0]}]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["linear", "x=[1, 2]"], "x"),
            (["linear", "x=[1, 2, null]"], "x"),
            (["linear", "x=abc"], "x"),
            (["linear", "z=[1, 2, 3]"], "z"),
            (["people", "age=-5", "member=true", "country=PT"], "age"),
            (["people", "age=old", "member=true", "country=PT"], "age"),
            (["people", "age=5", "country=PT"], "member"),
            (["grey", "picture=abc!"], "picture"),
        ],
    )
    def test_a_row_that_does_not_fit_is_a_1_that_names_the_field(
        self, ask: Pelton, arguments: list[str], says: str
    ) -> None:
        done = ask(*arguments)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("pelton: row 1: ")
        assert says in done.err

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["linear", "x"], "field=value"),
            (["linear", "=5"], "field=value"),
            (["linear", "x=@missing.png"], "missing.png"),
            (["linear", "x=@."], "cannot read"),
            (["linear", "x=[1, 2, 3]", "x=[4, 5, 6]"], "twice"),
            (["nobody", "x=1"], "nobody"),
            (["linear:0123", "x=[1, 2, 3]"], "0123"),
            (["a b", "x=1"], "a b"),
            (["linear:", "x=[1, 2, 3]"], "linear:"),
        ],
    )
    def test_what_cannot_be_asked_is_told(self, ask: Pelton, arguments: list[str], says: str) -> None:
        done = ask(*arguments)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("pelton: ")
        assert says in done.err


class TestFiles:
    def test_json_lines_give_one_answer_a_line_in_order(self, ask: Pelton, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(f'{{"x": [{i}, 0, 0]}}\n\n' for i in range(20)))
        done = ask("linear", f"@{file}")
        assert (done.code, done.lines) == (0, [{"y": [float(i), 0.0]} for i in range(20)])

    def test_a_table_with_a_header_gives_one_answer_a_row(self, ask: Pelton, tmp_path: Path) -> None:
        file = tmp_path / "people.CSV"
        file.write_bytes("\ufeffage,member,country\r\n100,true,PT\r\n1e-1,false,AT\r\n".encode())
        done = ask("people", f"@{file}")
        assert done.code == 0
        assert [row["labels"][0]["score"] > 0.7 for row in done.lines] == [True, False]

    def test_standard_input(self, ask: Pelton) -> None:
        done = ask("linear", "-", stdin=b'{"x": [1, 2, 3]}\n{"x": [0, 0, 0]}')
        assert (done.code, done.lines) == (0, [{"y": [4.0, 5.0]}, {"y": [0.0, 0.0]}])

    def test_nothing_on_standard_input_is_no_row(self, ask: Pelton) -> None:
        assert ask("linear", "-", stdin=b"") == (0, "", "")

    def test_a_picture_may_stand_in_a_line(self, ask: Pelton, picture: Path) -> None:
        coded = base64.b64encode(picture.read_bytes()).decode()
        done = ask("grey", "-", stdin=json.dumps({"picture": coded}).encode())
        assert done.lines == [{"mean": 100.0}]

    def test_a_bad_row_is_told_by_its_number_and_the_others_are_answered(self, ask: Pelton) -> None:
        done = ask("linear", "-", stdin=b'{"x": [1, 2, 3]}\n{"x": [1]}\n{"x": [0, 0, 0]}\n')
        assert done.code == 1
        assert len(done.lines) == 2
        assert done.err.startswith("pelton: row 2: ")
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("missing.jsonl", None, "cannot read"),
            ("missing.csv", None, "cannot read"),
            ("rows.jsonl", b'{"x": [1, 2, 3]}\n{"x": [1,\n', "line 2 is not JSON"),
            ("rows.jsonl", b'{"x": [1, 2, 3]}\n[1, 2, 3]\n', "line 2 must be a JSON object"),
            ("rows.jsonl", b'{"x": [1, 2, 3]}\n{"x": "\xff"}\n', "line 2 is not JSON"),
            ("rows.jsonl", b'{"x": [1, 2, 3]}\n' + b"[" * 100_000, "line 2 is not JSON"),
            ("rows.csv", b"x\n1\n\xff\xfe\n", "rows.csv"),
            ("rows.csv", b"x\n1\n2,3\n", "row 2"),
            ("empty.csv", b"", "header"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_told_by_its_line(
        self, ask: Pelton, tmp_path: Path, name: str, content: bytes | None, says: str
    ) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        done = ask("linear", f"@{tmp_path / name}")
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith("pelton: ")
        assert says in done.err
        assert name in done.err

    def test_a_cell_may_be_as_long_as_a_picture(self, ask: Pelton, tmp_path: Path) -> None:
        picture = io.BytesIO()
        Image.effect_noise((500, 500), 50).save(picture, "PNG")
        file = tmp_path / "pictures.csv"
        file.write_text("picture\n" + base64.b64encode(picture.getvalue()).decode() + "\n")
        assert file.stat().st_size > 2**17
        assert 100 < ask("grey", f"@{file}").lines[0]["mean"] < 160

    @pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
    def test_what_is_no_json_is_no_number(self, ask: Pelton, text: str) -> None:
        assert ask("people", f"age={text}", "member=true", "country=PT").code == 1
        done = ask("people", "-", stdin=f'{{"age": {text}, "member": true, "country": "PT"}}'.encode())
        assert (done.code, done.out) == (1, "")
        assert "line 1 is not JSON" in done.err

    def test_a_folder_is_no_file_of_rows(self, ask: Pelton, tmp_path: Path) -> None:
        done = ask("linear", f"@{tmp_path}")
        assert (done.code, done.out) == (1, "")
        assert "cannot read" in done.err


class TestSources:
    def test_a_file_is_added_and_asked(self, pelton: Pelton, home: Path, linear: Path) -> None:
        done = pelton("predict", linear, "x=[1, 2, 3]", "--home", home)
        assert (done.code, done.lines) == (0, [{"y": [4.0, 5.0]}])

    def test_a_class_that_nobody_trusts_is_not_run(self, pelton: Pelton, home: Path, tmp_path: Path) -> None:
        touched = tmp_path / "touched"
        source = tmp_path / "service.py"
        source.write_text(
            f"import pathlib\npathlib.Path({str(touched)!r}).touch()\n"
            "class Model:\n"
            "    inputs = {'x': 'FP32[1]'}\n"
            "    outputs = {'y': 'FP32[1]'}\n"
            "    def predict(self, x):\n"
            "        return x * 2\n"
        )
        done = pelton("predict", f"{source}:Model", "x=[2]", "--home", home)
        assert (done.code, done.out) == (1, "")
        assert "trust" in done.err
        assert not touched.exists()
        assert pelton("predict", f"{source}:Model", "x=[2]", "--home", home, "--trust").lines == [{"y": [4.0]}]

    def test_a_model_without_an_example_says_how_to_ask(self, pelton: Pelton, models: Path) -> None:
        done = pelton("predict", "linear", "--home", models)
        assert (done.code, done.out) == (1, "")
        assert "field=value" in done.err


class TestServers:
    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1:1/"])
    def test_a_server_that_is_not_there_is_named(self, pelton: Pelton, url: str) -> None:
        done = pelton("predict", "linear", "x=[1, 2, 3]", "--url", url)
        assert (done.code, done.out) == (1, "")
        assert "http://127.0.0.1:1" in done.err
        assert "pelton serve" in done.err

    @pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://host:99999", "http://[::1"])
    def test_an_address_that_is_none_is_told(self, pelton: Pelton, url: str) -> None:
        done = pelton("predict", "linear", "x=[1, 2, 3]", "--url", url)
        assert (done.code, done.out) == (1, "")
        assert "is not the address of a server" in done.err

    def test_a_server_of_somebody_else_is_told(self, pelton: Pelton, tmp_path: Path) -> None:
        import http.server
        import threading

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
            other.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
            thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            done = pelton("predict", "linear", "x=1", "--url", f"http://127.0.0.1:{other.server_port}")
            other.shutdown()
            thread.join()
        assert (done.code, done.out) == (1, "")
        assert "did not answer with JSON" in done.err


class TestPipes:
    """In processes of their own: what is left in buffers at the end counts."""

    def test_a_reader_that_has_enough_ends_it_quietly(self, models: Path, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text('{"x": [1, 2, 3]}\n' * 20_000)
        command = [sys.executable, "-m", "pelton", "predict", "linear", f"@{file}", "--home", str(models)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            assert running.stdout.readline() == '{"y": [4.0, 5.0]}\n'
            running.stdout.close()
            assert running.stderr.read() == ""
            assert running.wait(60) == 0

    def test_a_list_into_a_pipe_that_is_closed_ends_quietly(self, models: Path) -> None:
        """Short output is written when the process ends, not while the command runs."""
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "pelton", "list", "--home", str(models)]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")

    def test_answers_come_while_questions_still_arrive(self, process: Any, finish: Any, models: Path) -> None:
        running = process("predict", "linear", "-", "--home", models, stdin=subprocess.PIPE)
        for number in range(3):
            running.stdin.write(f'{{"x": [{number}, 0, 0]}}\n')
            running.stdin.flush()
            assert json.loads(running.stdout.readline()) == {"y": [float(number), 0.0]}
        running.stdin.close()
        running.stdin = None
        assert finish(running).code == 0

    def test_an_interrupt_ends_it_with_130_and_no_trace(self, process: Any, finish: Any, models: Path) -> None:
        running = process("predict", "linear", "-", "--home", models, stdin=subprocess.PIPE)
        running.stdin.write('{"x": [1, 2, 3]}\n')
        running.stdin.flush()
        assert running.stdout.readline()
        running.send_signal(signal.SIGINT)
        done = finish(running)
        assert done.code == 130
