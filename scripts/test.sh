#!/usr/bin/env bash
# Install into .venv and run the tests, a process a core; --slow runs those marked slow, too; other flags go to pytest.
#     scripts/test.sh
#     scripts/test.sh --slow -k end_to_end
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt tests/requirements.txt
# A thread a process: the networks of the tests are small, and processes that share cores would only wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest tests -q -n auto "$@"
