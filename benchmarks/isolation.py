"""One poisoned item among eight that are batched: one error and seven right answers, for ONNX and Python models.

usage: isolation.py [--rounds 20]
A round: one good call keeps the model busy, eight more arrive meanwhile and form one batch, one of them poisoned, each
time at another place. A check round without poison shows how many rows the batch has.
"""

import contextlib
import http.client
import json
import socket
import sys
import time
from pathlib import Path

import results
from live import Live, home_with, on_core
from models import table_onnx

HERE = Path(__file__).resolve().parent
CALLS = 8
BUSY_S = 0.002  # after the first call; less than the model takes


def onnx_case(i):
    right = [float(x) for x in table_onnx.table()[i % table_onnx.ROWS][:3]]
    return {"i": i}, lambda answer: answer["y"][:3] == right


def python_case(i):
    return {"x": [float(i)]}, lambda answer: answer["y"] == [2.0 * i]


CASES = {"onnx": ("table", onnx_case, 99), "python": ("poisoned", python_case, 666)}


def opened(server, model, case, i):
    """A connection, and what to send on it."""
    body, is_right = case(i)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection, json.dumps(body), f"/predict/{model}", i, is_right


def answer(call):
    """(item, status, right answer, rows of its batch)."""
    connection, _, _, i, is_right = call
    response = connection.getresponse()
    content = response.read()
    connection.close()
    right = response.status == 200 and is_right(json.loads(content))
    return i, response.status, right, int(response.getheader("pelton-batch-rows") or 0)


def round_of(server, model, case, items):
    """The answers to all items, sent together while the model is busy with another call, and that other answer."""
    calls = [opened(server, model, case, i) for i in (1, *items)]
    for number, (connection, body, path, _, _) in enumerate(calls):
        connection.request("POST", path, body)
        if number == 0:
            time.sleep(BUSY_S)
    first, *found = [answer(call) for call in calls]
    return found, first


def run(server, kind, rounds):
    model, case, poison = CASES[kind]
    checked = [round_of(server, model, case, range(CALLS))[0] for _ in range(rounds)]
    rows = [one[3] for found in checked for one in found]
    exact = errors = right = wrong = first_wrong = 0
    for number in range(rounds):
        items = list(range(CALLS))
        items[number % CALLS] = poison
        found, first = round_of(server, model, case, items)
        bad = sum(1 for i, status, _, _ in found if i == poison and status >= 400)
        good = sum(1 for i, _, ok, _ in found if i != poison and ok)
        errors, right, wrong = errors + bad, right + good, wrong + CALLS - bad - good
        exact += bad == 1 and good == CALLS - 1
        first_wrong += not first[2]
    return {
        "model": kind, "rounds": rounds, "with 1 error and 7 right": exact, "errors for the poisoned": errors,
        "right answers": right, "anything else": wrong + first_wrong,
        "rows of a batch without poison (median)": results.quantile(rows, 0.5),
    }  # fmt: skip


def main():
    parser = results.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    on_core(1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(home_with()))
        table_onnx.write(folder / "table.onnx")
        example = folder / "example.json"
        example.write_text(json.dumps({"i": [1, 2, 3]}))
        home = stack.enter_context(home_with(
            (folder / "table.onnx", "table", "--p99-ms", "2000", "--example", str(example)),
            (f"{HERE / 'models' / 'poisoned.py'}:Poisoned", "poisoned", "--p99-ms", "2000", "--trust"),
        ))  # fmt: skip
        server = stack.enter_context(Live(home, "--trust", "*", "--slots", "1"))
        rows = [run(server, kind, args.rounds) for kind in CASES]
    results.report(args.out, "isolation", "One poisoned item among eight", rows)
    return 0 if all(row["with 1 error and 7 right"] == args.rounds and not row["anything else"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
