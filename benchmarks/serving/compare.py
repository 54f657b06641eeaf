#!/usr/bin/env python3
"""Pelton beside its peers, in alternating runs: medians, and ratios to Triton, to FastAPI and to the limit.

usage: compare.py [--cores 1|2] [--rounds 3] [--secs 10] [--rows ...] [--model T,V] [--quick]
JSON is compared with JSON and binary bodies with binary ones. The limit: for V what ONNX Runtime alone does with its
best batch (raw.py); for T that and the HTTP floor together, 1 / (1 / e_bare + 1 / raw), since both share the core.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import report_tables
import results
from rows import NAMES, ROWS

import bench

PELTON = ["pelton", "pelton_v2", "pelton_v2bin"]
WORKERS = [f"{name}_workers" for name in PELTON]
TRITON = {"plain": "triton_json", "v2": "triton_json", "v2array": "triton_json", "v2bin": "triton_bin"}
FASTAPI = ("fastapi_async", "fastapi")
PEERS = ["triton_json", "triton_bin", *FASTAPI, "pytriton", "mlserver2", "bentoml2", "litserve", "rayserve_ha"]
STRONGEST = ["triton_json", "triton_bin", "fastapi_async"]
FLOOR = "e_bare"


def measure_limit(secs):
    """raw.py on the server's core, with the venv `floor`."""
    python = bench.HOME / "venvs" / "floor" / "bin" / "python"
    script = Path(__file__).with_name("raw.py")
    command = ["taskset", "-c", bench.SERVER_CORE, python, script, "--secs", str(secs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def limits(samples, cores):
    """Requests/s that no server can pass on one core, by model; nothing for two cores, which wrk shares."""
    raw = report_tables.read_raw()
    if cores == 2 or not raw:
        return {}
    best = {model: max(rates.values()) for model, rates in raw.items()}
    floors = [report_tables.median(group, "rps") for key, group in samples.items() if key[2] == FLOOR]
    if floors:
        best["T"] = 1 / (1 / max(floors) + 1 / best["T"])
    return best


def rows_of(samples, model, limit):
    """One dictionary per row and number of connections, fastest rows first."""
    rates = {(k[2], k[3]): report_tables.median(g, "rps") for k, g in samples.items() if k[1] == model}
    found = []
    for (name, callers), rate in sorted(rates.items(), key=lambda item: (item[0][1], -item[1])):
        group = next(g for k, g in samples.items() if k[1:] == (model, name, callers))
        seen = [s["rps"] for s in group]
        triton = rates.get((TRITON.get(ROWS[name].kind), callers))
        fastapi = max((rates[f, callers] for f in FASTAPI if (f, callers) in rates), default=None)
        found.append({
            "callers": callers, "server": NAMES.get(name, name), "req/s": rate,
            "min-max": f"{min(seen):,.0f}-{max(seen):,.0f}",
            "p50 ms": report_tables.median(group, "p50") / 1e3, "p99 ms": report_tables.median(group, "p99") / 1e3,
            "/ Triton": rate / triton if triton else None, "/ FastAPI": rate / fastapi if fastapi else None,
            "/ limit": rate / limit if limit else None, "peak MB": statistics.median(s["hwm"] for s in group),
            "wrong": sum(s[key] for s in group for key in bench.WRK_ERRORS) + max(s["bad"] for s in group),
            "other cores": max(s["other"] for s in group), "samples": len(group),
        })  # fmt: skip
    return found


def parse():
    parser = bench.make_parser()
    parser.description = __doc__
    parser.set_defaults(reps=1, rounds=3, secs=10, retry=3, rows=[], out=results.DEFAULT_OUT, distinct=4096)
    for action in parser._actions:
        action.required = False
    parser.add_argument("--quick", action="store_true", help="only the strongest peers")
    args = parser.parse_args()
    ours = PELTON + (WORKERS if args.cores == 2 else [])
    args.rows = args.rows or [FLOOR, *ours, *(STRONGEST if args.quick else PEERS)]
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown rows {unknown}; known: {', '.join(ROWS)}")
    return args


def main():
    args = parse()
    if args.cores == 1:
        measure_limit(min(0.5, args.secs / 10))
    with tempfile.TemporaryDirectory() as folder:
        out, args.out = args.out, Path(folder) / "samples.jsonl"
        bench.run_rows(args)
        samples = report_tables.read([args.out]) if args.out.exists() else {}
        kept = args.out.read_text().splitlines() if samples else []
    limit = limits(samples, args.cores)
    for model in args.model:
        rows = rows_of(samples, model, limit.get(model))
        if rows:
            cores = "one core" if args.cores == 1 else "two cores shared with the load"
            title = f"Model {model}, {cores}, samples of {args.secs} s" + limit_text(limit.get(model))
            results.report(out, "compare", title, rows, cores_used=args.cores, model=model, limit=limit.get(model))
    with out.with_name("samples.jsonl").open("a") as file:
        file.writelines(line + "\n" for line in kept)
    return 0 if samples else 1


def limit_text(limit):
    return f", limit {limit:,.0f} req/s" if limit else ""


if __name__ == "__main__":
    sys.exit(main())
