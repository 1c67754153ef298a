#!/usr/bin/env bash
# Formats, lints, types and tests; what CI runs. Options beside --all go to pytest.
#   scripts/test.sh [--all] [PYTEST OPTION ...]      --all: the slow tests too
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

selection=()
if [[ ${1:-} == --all ]]; then
    selection=(-m "")
    shift
fi
ensure_environment test
"$python" -m ruff format --check --quiet . || {
    echo "not formatted: run 'ruff format .'" >&2
    exit 1
}
"$python" -m ruff check .
"$python" -m mypy
# Most of the time goes into tracing, which one core does: a process a core, a file at a time.
exec "$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
    ${selection[@]+"${selection[@]}"} "$@"
