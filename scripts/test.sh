#!/usr/bin/env bash
# Install into .venv and run the tests; --slow runs those marked slow, too; other flags go to pytest.
#     scripts/test.sh
#     scripts/test.sh --slow -k end_to_end
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt tests/requirements.txt
exec .venv/bin/python -m pytest tests -q "$@"
