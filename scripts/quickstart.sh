#!/usr/bin/env bash
# Install into .venv and run `python main.py` with the flags given here. Without flags it runs the built-in example.
#     scripts/quickstart.sh
#     scripts/quickstart.sh --methods cam --epochs 3
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt
exec .venv/bin/python main.py "$@"
