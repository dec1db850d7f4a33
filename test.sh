#!/usr/bin/env bash
# Makes the environment, checks the style, runs the tests; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh

make_environment requirements-dev.txt
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
