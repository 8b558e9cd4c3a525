#!/usr/bin/env bash
# Evaluate the runs of scripts/run_train.sh again, such as with another checkpoint or further metrics.
#
#   DATA=dataset ROOT=experiments scripts/run_eval.sh --eval_checkpoint_type best
#   FILTER='CUB/*_ours' scripts/run_eval.sh --fidelity confidence      # further flags go to main.py
#
# DATA, ROOT and FILTER are those of run_train.sh. Runs that are not there are named and passed over.

set -euo pipefail
# shellcheck source=scripts/recipes.sh
. "$(dirname "${BASH_SOURCE[0]}")/recipes.sh"

names=$(recipes)
for name in $names; do
    if [ ! -f "$ROOT/$name/config.yaml" ]; then
        echo "== $name: no run in $ROOT/$name"
        continue
    fi
    echo "== $name"
    "$PYTHON" "$here/../main.py" --eval_only --data_root "$DATA" --root "$ROOT/${name%/*}" --experiment_name "${name##*/}" \
        "$@"
done
