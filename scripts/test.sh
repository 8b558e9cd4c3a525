#!/usr/bin/env bash
# Install into .venv and run the tests, one process per core. Flags go to pytest; --slow also runs tests marked slow.
#     scripts/test.sh
#     scripts/test.sh --slow -k end_to_end
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt tests/requirements.txt
# One thread per process: the networks of the tests are small, and processes that share cores would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest tests -q -n auto "$@"
