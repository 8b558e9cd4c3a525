#!/usr/bin/env bash
# How do CAM methods localize when there is little to train on? One run for each proportion and seed, curves and a table.
#
#   scripts/small_data.sh                                                          # CUTOUTS, 27 runs
#   DATASET=CUB SEEDS="1 2" PROPORTIONS="1 10 100" scripts/small_data.sh --architecture resnet50 --gpus 1
#
# A run trains the softmax head on its part of each class's training images (at least one), behind the frozen ImageNet
# trunk, and BroadCAM is fitted to the same part. DATA has images and metadata (prepare them first, see docs/data.md), ROOT
# gets the runs, small_data.png, small_data.csv and small_data.md. METHODS, HEADS and further flags go to main.py. Runs that
# have results are left alone, interrupted ones go on. The first run that fails ends the command; call it again to go on.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$here/../.venv/bin/python" ]; then PYTHON=$here/../.venv/bin/python; else PYTHON=python3; fi
fi
DATASET=${DATASET:-CUTOUTS} DATA=${DATA:-dataset} METADATA=${METADATA:-metadata} ROOT=${ROOT:-experiments/small_data}
SEEDS=${SEEDS:-1 2 3} PROPORTIONS=${PROPORTIONS:-1 2 5 8 10 20 50 80 100}
METHODS=${METHODS:-cam,gradcam,layercam,broadcam} HEADS=${HEADS:-softmax,softmax_clamped}

for seed in $SEEDS; do
    for proportion in $PROPORTIONS; do
        name=$DATASET-$proportion-$seed
        if [ -f "$ROOT/$name/results.json" ]; then
            echo "== $name: has results"
            continue
        fi
        echo "== $name"
        flags=(--dataset_name "$DATASET" --proportion "$proportion" --seed "$seed" --model_structure vanilla
            --unfreeze_layer fc --methods "$METHODS" --heads "$HEADS" --large_feature_map TRUE --bootstrap 0 "$@")
        if [ -f "$ROOT/$name/config.yaml" ]; then flags=(--resume); fi
        "$PYTHON" "$here/../main.py" "${flags[@]}" --data_root "$DATA" --metadata_root "$METADATA" --root "$ROOT" \
            --experiment_name "$name"
    done
done
"$PYTHON" "$here/small_data.py" "$ROOT" --dataset_name "$DATASET"
