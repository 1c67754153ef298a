#!/usr/bin/env bash
# Measures every choice of implementation, precision and seeds on this machine's accelerator,
# the most telling first, until the time is up; a record each:
#   scripts/benchmark_accelerator.sh FOLDER SECONDS [SIZE, default paper]
# Runs with $PYTHON, or else the python on the PATH, which has the project and its device's jax
# installed. What the time does not reach is named at the end; exit status 1 if anything failed.
set -uo pipefail

if [[ $# -lt 2 || ! $2 =~ ^[0-9]+$ ]]; then
    echo "usage: scripts/benchmark_accelerator.sh FOLDER SECONDS [SIZE]" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
folder=$(cd "$1" && pwd)
end=$((SECONDS + $2))
size=${3:-paper}
least=60 # seconds: nothing of a search is compiled in less
status=0
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# measure NAME FLAG...: a record FOLDER/SIZE_NAME.json; each workload is in it once it is done.
measure() {
    local name=$1 left=$((end - SECONDS))
    shift
    if ((left < least)); then
        echo "not reached: $name"
        return
    fi
    echo "== $name"
    timeout "$left" "${PYTHON:-python}" scripts/benchmark.py --size="$size" --steps=20 \
        --json="$folder/${size}_$name.json" "$@" || {
        echo "failed or out of time: $name"
        status=1
    }
}

first=search_step_first_order
measure plain --implementation=plain --workloads=$first,retrain_step
measure folded --implementation=folded --workloads=$first,retrain_step
measure folded_bfloat16 --implementation=folded --precision=bfloat16 --workloads=$first,retrain_step
measure plain_bfloat16 --implementation=plain --precision=bfloat16 --workloads=$first,retrain_step
measure folded_4seeds --implementation=folded --seeds=4 --workloads=$first
measure folded_bfloat16_4seeds --implementation=folded --precision=bfloat16 --seeds=4 --workloads=$first
measure folded_second --implementation=folded \
    --workloads=search_step_finite_difference,search_step_unrolled
measure plain_second --implementation=plain \
    --workloads=search_step_finite_difference,search_step_unrolled
exit $status
