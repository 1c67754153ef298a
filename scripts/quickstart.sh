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

# Two lanes keep two cores busy: random cells do not wait for the search.
searched_lane() {
    trap 'stop 143' TERM
    "$python" -m darts_jax search --config="configs/search_digits.py$variant" \
        --workdir="$runs/search" &
    wait $!
    echo "retraining derived (log: $runs/derived.log)"
    retrain derived --config.genotype="$runs/search/genotype.json"
    retrain_random
}
random_lane() {
    trap 'stop 143' TERM
    retrain_random
}

trap 'stop 130' INT
trap 'stop 143' TERM
echo "searching (in $runs/search)"
if ((randoms)); then
    echo "beside it retraining $randoms random cells (logs: $runs/random-*.log)"
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
