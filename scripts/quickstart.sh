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
claims=$(mktemp -d)
trap 'rm -rf "$claims"' EXIT

# Ends the processes started here. They save and stop on SIGTERM; as background jobs of a
# script they ignore Ctrl-C itself.
stop() {
    trap - INT TERM
    # shellcheck disable=SC2046
    kill -TERM $(jobs -p) 2>/dev/null || true
    wait || true
    exit "$1"
}

# retrain NAME OPTION...: retrains a cell; where that fails, shows the end of its log.
retrain() {
    local name=$1 status=0
    local log=$runs/$name.log
    shift
    "$python" -m darts_jax retrain --config="configs/retrain_digits.py$variant" \
        --workdir="$runs/$name" --noconfig.progress "$@" > "$log" 2>&1 &
    wait $! || status=$?
    if ((status)); then
        tail -n 20 "$log" >&2
        echo "retraining $name failed with status $status; the whole log: $log" >&2
        exit "$status"
    fi
}

# Retrains the random cells that the other lane has not begun: mkdir succeeds only once.
retrain_random() {
    local seed
    for ((seed = 1; seed <= randoms; seed++)); do
        if mkdir "$claims/$seed" 2>/dev/null; then
            retrain "random-$seed" --config.genotype=random --config.genotype_seed="$seed"
        fi
    done
}

# Sets $first and $second to the two halves of the cores, as "0,1" and "2,3"; leaves them
# as they are where there is no taskset.
halve_cores() {
    if command -v taskset > /dev/null; then
        read -r first second < <("$python" -c 'import os
cores = sorted(map(str, os.sched_getaffinity(0)), key=int)
half = len(cores) // 2
print(",".join(cores[:half]), ",".join(cores[half:]))') || true
    fi
}

# keep_to CORES: keeps the lane to these. The threads of two runs that share all cores wait
# for each other, which took a sixth more CPU time.
keep_to() {
    [[ -z $1 ]] || taskset -cp "$1" "$BASHPID" > /dev/null 2>&1 || true
}

# Two lanes keep two cores busy: random cells do not wait for the search.
searched_lane() {
    trap 'stop 143' TERM
    keep_to "$first"
    "$python" -m darts_jax search --config="configs/search_digits.py$variant" \
        --workdir="$runs/search" &
    wait $!
    echo "retraining derived (log: $runs/derived.log)"
    retrain derived --config.genotype="$runs/search/genotype.json"
    retrain_random
}
random_lane() {
    trap 'stop 143' TERM
    keep_to "$second"
    retrain_random
}

trap 'stop 130' INT
trap 'stop 143' TERM
echo "searching (in $runs/search)"
if ((randoms)); then
    echo "beside it retraining $randoms random cells (logs: $runs/random-*.log)"
fi
first="" second=""
if ((randoms > 1)); then # with fewer one lane would end long before the other
    halve_cores
fi
searched_lane &
searched=$!
random_lane &
random=$!
wait "$searched" || stop $?
wait "$random" || stop $?

folders=("$runs/search" "$runs/derived")
for ((seed = 1; seed <= randoms; seed++)); do
    folders+=("$runs/random-$seed")
done
"$python" -m darts_jax report --output="$runs/report.html" "${folders[@]}"
