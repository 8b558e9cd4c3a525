#!/usr/bin/env bash
# Where each data set can be downloaded, and links below dataset/ to what you downloaded. Nothing is copied or deleted.
#     scripts/prepare_data.sh                          says where to get all data sets
#     scripts/prepare_data.sh CUB                      says where to get one of them
#     scripts/prepare_data.sh CUB FOLDER [FOLDER ...]  links the files in the folders (for example CUB and CUBv2), and checks
# Set DATA_ROOT=/big/disk/dataset, METADATA_ROOT=... and PYTHON=... to use other places.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DATA_ROOT=${DATA_ROOT:-dataset}
METADATA_ROOT=${METADATA_ROOT:-metadata}
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; else PYTHON=python3; fi
fi

fail() { echo "prepare_data.sh: error: $*" >&2; exit 2; }

explain() {
    case $1 in
    ILSVRC) cat <<'END'
ILSVRC 2012 (1,000 classes; 138 GB of training images, 6 GB of validation images)
  download   https://www.image-net.org/challenges/LSVRC/2012/ (free account): ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar
             or https://www.kaggle.com/c/imagenet-object-localization-challenge
             val split: ImageNetV2, https://github.com/modestyachts/ImageNetV2 (the 10,000 images of threshold-0.7)
  unpack to  FOLDER/train/n01440764/*.JPEG ..., FOLDER/val/ILSVRC2012_val_*.JPEG, FOLDER/val2/0/*.jpeg ... val2/999/*.jpeg
  metadata   scripts/prepare_metadata.py copy https://github.com/clovaai/wsolevaluation --datasets ILSVRC
             or train and test from the annotations: scripts/prepare_metadata.py ilsvrc --help
END
    ;;
    CUB) cat <<'END'
CUB-200-2011 (200 birds; 1.1 GB) and CUBv2 (1,000 images for the val split)
  download   https://www.vision.caltech.edu/datasets/cub_200_2011/ : CUB_200_2011.tgz
             CUBv2: the link is in https://github.com/clovaai/wsolevaluation, section "Dataset downloading and license"
  unpack to  FOLDER/CUB_200_2011/images/001.Black_footed_Albatross/*.jpg ..., FOLDER2/001.Black_footed_Albatross/*.jpg ...
  metadata   scripts/prepare_metadata.py copy https://github.com/clovaai/wsolevaluation --datasets CUB
             or train and test from the text files: scripts/prepare_metadata.py cub FOLDER/CUB_200_2011
END
    ;;
    OpenImages) cat <<'END'
OpenImages30k (100 classes with masks; images 3 GB)
  download   the links are in https://github.com/clovaai/wsolevaluation, section "Dataset downloading and license"
             (images and masks; from https://storage.googleapis.com/openimages/web/index.html)
  unpack to  FOLDER/{train,val,test}/<class>/*.jpg and, there or in a second folder, the masks {val,test}/<class>/*.png
  metadata   scripts/prepare_metadata.py copy https://github.com/clovaai/wsolevaluation --datasets OpenImages
END
    ;;
    CARS) cat <<'END'
Stanford Cars (196 classes; 2 GB)
  download   https://www.kaggle.com/datasets/eduardo4jesus/stanford-cars-dataset (the official page,
             https://ai.stanford.edu/~jkrause/cars/car_dataset.html, no longer serves the files): images and car_devkit,
             with cars_test_annos_withlabels.mat
  unpack to  FOLDER/cars_train/*.jpg, FOLDER/cars_test/*.jpg, FOLDER/devkit/*.mat
  metadata   scripts/prepare_metadata.py copy https://github.com/finallyupper/dual-cam --datasets CARS
             or from the devkit: scripts/prepare_metadata.py cars FOLDER/devkit
END
    ;;
    *) fail "unknown data set '$1' (known: ILSVRC CUB OpenImages CARS)";;
    esac
}

# link SOURCE NAME: make $DATA_ROOT/$set/NAME a link to SOURCE; something that exists already is kept.
link() {
    local source target
    source=$(cd "$1" && pwd)
    target=$DATA_ROOT/$set/$2
    if [ -L "$target" ] || [ -e "$target" ]; then
        [ "$(readlink -f "$target")" = "$(readlink -f "$source")" ] || echo "kept: $target exists already and is not $source"
    else
        mkdir -p "$DATA_ROOT/$set"
        ln -s "$source" "$target"
        echo "linked: $target -> $source"
    fi
    linked=$((linked + 1))
}

# link_files SOURCE: link file by file, for data sets whose downloads share folder names.
link_files() {
    local source file below
    source=$(cd "$1" && pwd)
    while IFS= read -r -d '' file; do
        below=${file#"$source/"}
        mkdir -p "$DATA_ROOT/$set/${below%/*}"
        [ -e "$DATA_ROOT/$set/$below" ] || ln -s "$file" "$DATA_ROOT/$set/$below"
        linked=$((linked + 1))
    done < <(find -L "$source" -type f \( -name '*.jpg' -o -name '*.png' \) -path "$source/*/*" -print0)
}

link_folder() {
    local folder=$1 sub
    case $set in
    ILSVRC) for sub in train val val2; do if [ -d "$folder/$sub" ]; then link "$folder/$sub" "$sub"; fi; done;;
    CARS) for sub in cars_train cars_test; do if [ -d "$folder/$sub" ]; then link "$folder/$sub" "$sub"; fi; done;;
    OpenImages) link_files "$folder";;
    CUB)
        for sub in "$folder/CUB_200_2011/images" "$folder/images" "$folder"; do if [ -d "$sub" ]; then break; fi; done
        link_files "$sub";;     # CUB and CUBv2 have the same class folders
    esac
}

case ${1:-} in
-h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0;;
"") for set in ILSVRC CUB OpenImages CARS; do explain "$set"; echo; done
    echo "then: scripts/prepare_data.sh NAME FOLDER links it below $DATA_ROOT/NAME"; exit 0;;
esac
set=$1
shift
if [ $# -eq 0 ]; then explain "$set"; exit 0; fi
explain "$set" > /dev/null
for folder in "$@"; do [ -d "$folder" ] || fail "$folder is not a folder"; done
linked=0
for folder in "$@"; do link_folder "$folder"; done
[ "$linked" -gt 0 ] || { explain "$set" >&2; fail "nothing in $* looks like $set; unpack it as shown above"; }
echo "$set is linked in $DATA_ROOT/$set"
if [ ! -d "$METADATA_ROOT/$set" ]; then
    explain "$set" | sed -n '/metadata/,$p'
    echo "$METADATA_ROOT has no metadata of $set yet; make it as shown above, then: scripts/prepare_metadata.py check $set"
    exit 0
fi
exec "$PYTHON" "$here/scripts/prepare_metadata.py" check "$set" --data_root "$DATA_ROOT" --metadata_root "$METADATA_ROOT"
