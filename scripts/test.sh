#!/bin/sh
# Set up everything the tests need in .venv and run them: lint, types, tests.
# Arguments go to pytest: sh scripts/test.sh -k staging
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'

.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
# One process per core and one thread per process, since threads of several processes would compete for the cores.
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n "$(.venv/bin/python -c 'import os; print(os.cpu_count())')" "$@"
