#!/bin/sh
# Set up everything the tests need in .venv and run them: lint, types, tests.
# Arguments go to pytest: sh scripts/test.sh -k staging
# TEST_VLLM=1 also runs the comparison on vLLM (docs/vllm.md); TEST_VLLM=main does so only if its code differs from main's.
set -eu
case "${1:-}" in
-h | --help)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'

.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
# One process per core and one thread per process, since threads of several processes would compete for the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$(.venv/bin/python -c 'import os; print(os.cpu_count())')" "$@"

case "${TEST_VLLM:-}" in
'') ;;
1) sh scripts/test_vllm.sh ;;
*)
    set -- qkedit/integrations/vllm qkedit/plugins scripts/vllm scripts/test_vllm.sh
    changed=$(git diff --name-only "$TEST_VLLM" -- "$@" && git ls-files --others --exclude-standard -- "$@")
    [ -z "$changed" ] || sh scripts/test_vllm.sh
    ;;
esac
