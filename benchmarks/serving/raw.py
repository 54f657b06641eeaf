"""The limit without HTTP: ONNX Runtime alone, rows/s by batch size, and the cost of decoding one request in Python.

usage (venv `floor`): taskset -c 0 python raw.py [--threads N] [--secs S] [--out FILE]
Writes results/raw.json for report_tables.py and compare.py. The rows differ: trees branch on the data, and with few
rows that repeat the branch predictor learns every path; the model then looks up to three times as fast as it is.
That figure is shown too ("repeated": one batch, over and over), and never used as a limit.
"""

import argparse
import base64
import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "servers"))
import common
import msgspec
import numpy as np
import orjson
import payloads

import bench

ROWS = {"T": 4096, "V": 256}  # that differ
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


def rows_per_second(session, rows, size, seconds):
    """Median of three runs; the batches are slices of `rows` in turn, so that no two runs of the model are alike."""
    rates, at = [], 0
    for _ in range(3):
        session.run(None, {"x": rows[:size]})
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            session.run(None, {"x": rows[at : at + size]})
            done += size
            at = at + size if at + 2 * size <= len(rows) else 0
        rates.append(done / (time.perf_counter() - start))
    return round(statistics.median(rates))


def decoded(model, i):
    item = payloads.item(model, i)
    return common.decode(item if model == "T" else base64.b64encode(item).decode())


def show_cost(name, function, runs=2000):
    start = time.perf_counter()
    for _ in range(runs):
        function()
    print(f"  {name}: {(time.perf_counter() - start) / runs * 1e6:.2f} us")


def decoding_costs(model):
    body, _ = payloads.encode(model, "plain")
    typed = msgspec.json.Decoder(msgspec.defstruct("Request", [("data", list[float] if model == "T" else str)])).decode
    print(f"  body {len(body)} bytes")
    show_cost("decode msgspec typed", lambda: typed(body).data)
    show_cost("decode orjson", lambda: orjson.loads(body)["data"])
    show_cost("decode json", lambda: json.loads(body)["data"])
    data = typed(body).data
    if model == "T":
        show_cost("np.array of 32 lists", lambda rows=[data] * 32: np.array(rows, np.float32))
        show_cost("np.asarray of one list", lambda: np.asarray(data, np.float32))
    else:
        show_cost("base64.b64decode", lambda: base64.b64decode(data))


def measure(model, seconds):
    """Rows/s by batch size with rows that differ, and with few that repeat."""
    os.environ["MODEL"] = model
    importlib.reload(common)
    session = common.session()
    rows = np.stack([decoded(model, i) for i in range(ROWS[model])])
    rates = {size: rows_per_second(session, rows, size, seconds) for size in BATCHES}
    same = {size: rows_per_second(session, rows[:size], size, seconds) for size in BATCHES}
    best = max(rates, key=rates.get)
    print(f"{model}, {common.ORT_THREADS} thread(s), rows/s by batch size: {rates}, best at {best}")
    print(f"  with one batch over and over (no limit): {same}", flush=True)
    return rates, same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--secs", type=float, default=0.5, help="of each of the three runs of a batch size")
    parser.add_argument("--out", type=Path, help="also append all figures there, as one JSON line")
    args = parser.parse_args()
    os.environ["ORT_THREADS"] = args.threads
    bench.raise_priority()
    measured = {model: measure(model, args.secs) for model in "TV"}
    for model in "TV":
        decoding_costs(model)
    limits = {model: rates for model, (rates, _) in measured.items()}
    if args.threads == "1":
        path = bench.HOME / "results" / "raw.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(limits))
    if args.out:
        line = {"claim": "raw", "limits": limits, "repeated": {model: same for model, (_, same) in measured.items()}}
        with open(args.out, "a") as out:
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
