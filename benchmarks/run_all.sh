#!/usr/bin/env bash
# Every benchmark in a sensible order, then one summary: .pelton/benchmarks/summary.md (OUT_DIR overrides the folder).
# usage: run_all.sh [quick]        quick: a first look in some minutes, not a claim
# PYTHON: an interpreter with Pelton (default: .venv of the checkout). Without the peers' environments (serving/install.sh)
# the comparison is left out; without models T and V also what needs them.
set -u
cd "$(dirname "$0")" || exit 1
root=$(cd .. && pwd)
PYTHON=${PYTHON:-$root/.venv/bin/python}
dir=${OUT_DIR:-$root/.pelton/benchmarks}
peers=${PEERBENCH_HOME:-$HOME/.cache/pelton-peerbench}
mkdir -p "$dir"
out=$dir/results-$(date -u +%Y%m%dT%H%M%S).jsonl
failed=()

run() { # script argument...      in a session of its own: only there may it raise its priority
  echo "== $*"
  setsid -w "$PYTHON" "$@" --out "$out" || failed+=("$*")
}

if [ "${1:-}" = quick ]; then
  start=(--runs 3 --secs 1 --skip-install) rounds=5 secs=2 soak=20000 drain=(--calls 24 --ms 50) rollout=(--swaps 6 --canaries 3)
  compare=(--quick --secs 2 --rounds 1 --conc 32 --retry 1)
else
  start=() rounds=50 secs=10 soak=1000000 drain=() rollout=()
  compare=(--secs 10 --rounds 3 --conc 1,32,128)
fi

run isolation.py --rounds "$rounds"
run drain.py "${drain[@]}"
run drain.py "${drain[@]}" --workers 2
run accept.py
run rollout.py "${rollout[@]}"
run rollout.py "${rollout[@]}" --workers 2
if [ -f "$peers/models/ref.json" ]; then
  run start.py "${start[@]}"
  run overload.py --secs "$secs"
  if [ -x "$peers/venvs/floor/bin/python" ] && command -v wrk >/dev/null; then
    run serving/compare.py "${compare[@]}"
    run serving/compare.py "${compare[@]}" --cores 2
  else
    echo "no comparison: it needs wrk and serving/install.sh"
  fi
  run soak.py --calls "$soak"
else
  echo "models T and V are missing: serving/install.sh floor model, then make_models.py and make_ref.py (see README.md)"
fi

"$PYTHON" summary.py "$out" --to "$dir/summary.md" ${failed[@]+--failed "${failed[@]}"}
echo "summary: $dir/summary.md    figures: $out"
[ ${#failed[@]} -eq 0 ]
