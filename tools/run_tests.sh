#!/usr/bin/env bash
# bash tools/run_tests.sh [pytest options]
#   Sets up what is missing, then checks style and types and runs the whole test suite.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup.sh
setup requirements.txt requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest -n auto --dist worksteal -m "slow or not slow" "$@"
