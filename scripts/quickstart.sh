#!/usr/bin/env bash
# The whole method on the 8x8 digits, on a CPU: search a cell, retrain it, retrain random
# cells to compare with, write the report. The same command again resumes what was stopped.
#   scripts/quickstart.sh [--tiny] [NUMBER OF RANDOM CELLS, default 3]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

variant="" runs=runs/quickstart
if [[ ${1:-} == --tiny ]]; then # a minute's check that everything works
    variant=:tiny runs=runs/quickstart-tiny
    shift
fi
randoms=${1:-3}
if [[ ! $randoms =~ ^[0-9]+$ ]]; then
    echo "the number of random cells is a whole number, not '$randoms'" >&2
    exit 2
fi
ensure_environment ""
mkdir -p "$runs"

pids=()
# Children save and stop on SIGTERM; as background jobs of a script they ignore Ctrl-C itself.
stop() {
    trap - INT TERM
    kill -TERM ${pids[@]+"${pids[@]}"} 2>/dev/null || true
    wait || true
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM

# Waits for every process started; the first failure ends the script with its log.
finish() {
    local i
    for i in "${!pids[@]}"; do
        wait "${pids[$i]}" || {
            local status=$?
            tail -n 20 "${logs[$i]}" >&2
            echo "failed with status $status; the whole log: ${logs[$i]}" >&2
            stop "$status"
        }
    done
    pids=() logs=()
}

logs=() folders=("$runs/search")
# retrain NAME OPTION...: starts a retraining; two run at a time.
retrain() {
    local name=$1
    shift
    echo "retraining $name (log: $runs/$name.log)"
    "$python" -m darts_jax retrain --config="configs/retrain_digits.py$variant" \
        --workdir="$runs/$name" --noconfig.progress "$@" > "$runs/$name.log" 2>&1 &
    pids+=($!) logs+=("$runs/$name.log") folders+=("$runs/$name")
    if ((${#pids[@]} == 2)); then finish; fi
}

echo "searching (in $runs/search)"
"$python" -m darts_jax search --config="configs/search_digits.py$variant" \
    --workdir="$runs/search" &
pids=($!) logs=(/dev/null)
finish
retrain derived --config.genotype="$runs/search/genotype.json"
for ((seed = 1; seed <= randoms; seed++)); do
    retrain "random-$seed" --config.genotype=random --config.genotype_seed="$seed"
done
finish
"$python" -m darts_jax report --output="$runs/report.html" "${folders[@]}"
