# Sourced by the other scripts: goes to the checkout's root and sets $python to a Python that
# has the project installed. An active virtual environment is used as it is, else .venv.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Every step allocates its arrays anew: in huge pages that takes a tenth less time. Read by
# glibc (2.35 or newer) when a process starts; what the user has set stays.
if [[ -z ${GLIBC_TUNABLES+set} &&
    $(getconf GNU_LIBC_VERSION 2>/dev/null) =~ ^glibc\ ([0-9]+)\.([0-9]+) ]] &&
    ((BASH_REMATCH[1] > 2 || BASH_REMATCH[1] == 2 && BASH_REMATCH[2] >= 35)); then
    export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
fi

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "no Python 3.11 or newer found on the PATH" >&2
    return 1
}

# Installs the project with the given extra ("" or "test"), unless that has been done.
ensure_environment() {
    local extra=$1 folder=${VIRTUAL_ENV:-$root/.venv} base stamp mark
    python=$folder/bin/python
    if [[ ! -x $python ]]; then
        base=$(find_python)
        echo "making a virtual environment in $folder with $base"
        "$base" -m venv "$folder"
    fi
    stamp=$folder/.darts-jax-${extra:-run}
    mark="$root $(cksum < setup.cfg) $(cksum < pyproject.toml)"
    if [[ ! -f $stamp || $(< "$stamp") != "$mark" ]]; then
        echo "installing darts-jax and its dependencies into $folder (a minute or two)"
        "$python" -m pip install --quiet --disable-pip-version-check \
            --editable "$root${extra:+[$extra]}"
        # Once and on all cores, before several runs need them at the same time; float64 is
        # for the tests.
        "$python" -c "from darts_jax.kernels.compiled import kernels
kernels()${extra:+, kernels('float64')}"
        echo "$mark" > "$stamp"
    fi
}
