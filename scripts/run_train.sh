#!/usr/bin/env bash
# Train Dual-CAM's published settings, one run for each file below scripts/recipes/.
#
#   DATA=dataset ROOT=experiments scripts/run_train.sh                 # all 45
#   FILTER='CUB/vgg16_*' scripts/run_train.sh --gpus 1 --workers 8     # some; further flags go to main.py
#   FILTER='*/resnet50_cam*' scripts/run_train.sh --amp bf16
#
# DATA has the images (--data_root), ROOT gets a folder of runs for each data set, FILTER is a pattern of
# DATASET/NAME. A branch ("..._ours") starts from the last checkpoint of its twin of one head, ROOT/DATASET/NAME, or
# from ImageNet weights where no twin was published. Runs that have results are left alone, interrupted ones go on.
# The first run that fails ends the command; call it again to go on.

set -euo pipefail
# shellcheck source=scripts/recipes.sh
. "$(dirname "${BASH_SOURCE[0]}")/recipes.sh"

names=$(recipes)
for name in $names; do
    recipe=$here/recipes/$name.yaml folder=$ROOT/$name
    twin=${name%_ours}
    if [ -f "$folder/results.json" ]; then
        echo "== $name: has results"
        continue
    fi
    echo "== $name"
    flags=(--config "$recipe")
    if [ -f "$folder/config.yaml" ]; then
        flags=(--resume)
    elif [ "$twin" != "$name" ] && grep -q '^model_structure: b2' "$recipe" && [ -f "$here/recipes/$twin.yaml" ]; then
        if [ ! -f "$ROOT/$twin/last_checkpoint.pth.tar" ]; then
            echo "error: $name starts from $ROOT/$twin/last_checkpoint.pth.tar, which is missing; train it first:" \
                "FILTER='$twin' $0" >&2
            exit 2
        fi
        flags+=(--ft_ckpt "$ROOT/$twin/last_checkpoint.pth.tar")
    fi
    "$PYTHON" "$here/../main.py" "${flags[@]}" --data_root "$DATA" --root "$ROOT/${name%/*}" \
        --experiment_name "${name##*/}" "$@"
done
