"""The command lines of wsolevaluation's README and of Dual-CAM's scripts, and folders shaped like their data sets.

Only what was published: flags and values. Paths of the authors' machines are replaced by relative ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsol.datasets.registry import image_root

# wsolevaluation, README, "Run train+eval" and "Evaluate your heatmaps".
WSOLEVALUATION_TRAIN = (
    "--dataset_name OpenImages --architecture vgg16 --wsol_method cam --experiment_name OpenImages_vgg16_CAM "
    "--pretrained TRUE --num_val_sample_per_class 5 --large_feature_map FALSE --batch_size 32 --epochs 10 "
    "--lr 0.00227913316 --lr_decay_frequency 3 --weight_decay 5.00E-04 --override_cache FALSE --workers 4 "
    "--box_v2_metric True --iou_threshold_list 30 50 70 --eval_checkpoint_type last"
)
WSOLEVALUATION_EVALUATE = (
    "--scoremap_root=train_log/scoremaps/ --metadata_root=metadata/ --mask_root=dataset/ --dataset_name=CUB "
    "--split=val --cam_curve_interval=0.01"
)
_OTHERS = "--wsol_method cam --workers 4 --gpus 1"
# Dual-CAM, scripts/run_train.sh: one of each kind (network, structure, unfrozen layer, CAM method, data set).
DUALCAM_TRAIN = {
    "CUB 1-1": f"--dataset_name CUB --architecture vgg16 {_OTHERS} --method cam --experiment_name vgg16_cam "
    "--wandb_name vgg16_cam --large_feature_map FALSE --epoch 50 --batch_size 32 --lr_decay_frequency 15 "
    "--lr 0.00001268269 --weight_decay 5.00E-04 --model_structure vanilla --project vgg16-cub-0",
    "CUB 1-2": f"--dataset_name CUB --architecture vgg16 {_OTHERS} --method cam --experiment_name vgg16_cam_ours "
    "--wandb_name vgg16_cam_ours --large_feature_map FALSE --epoch 50 --batch_size 32 --lr_decay_frequency 15 "
    "--lr 0.00005 --weight_decay 5.00E-04 --model_structure b2 "
    "--ft_ckpt experiments/vgg16_cam/last_checkpoint.pth.tar --unfreeze_layer fc2 --project vgg16-cub-0",
    "CARS 1-3": f"--dataset_name CARS --architecture vgg16 {_OTHERS} --method gradcam --experiment_name vgg16_gradcam "
    "--wandb_name vgg16_gradcam --large_feature_map FALSE --epoch 10 --batch_size 32 --lr_decay_frequency 15 "
    "--lr 0.001 --weight_decay 5.00E-04 --model_structure vanilla --project vgg16-cars-0",
    "CARS 1-4": f"--dataset_name CARS --architecture vgg16 {_OTHERS} --method gradcam "
    "--experiment_name vgg16_gradcam_ours --wandb_name vgg16_gradcam_ours --large_feature_map FALSE --epoch 10 "
    "--batch_size 32 --lr_decay_frequency 15 --lr 0.0001 --weight_decay 5.00E-04 --model_structure b2 "
    "--ft_ckpt experiments/vgg16_gradcam/last_checkpoint.pth.tar --unfreeze_layer classifier_2 --project vgg16-cars-0",
    "OpenImages 3-1": f"--dataset_name OpenImages --architecture inception_v3 {_OTHERS} --method cam "
    "--experiment_name inception_v3_cam --wandb_name inception_v3_cam --large_feature_map TRUE --epoch 10 "
    "--batch_size 32 --lr_decay_frequency 3 --lr 0.0003 --weight_decay 5.00E-04 --model_structure vanilla "
    "--project inceptionv3-openimages-0",
    "OpenImages 3-2": f"--dataset_name OpenImages --architecture inception_v3 {_OTHERS} --method cam "
    "--experiment_name inception_v3_cam_ours --wandb_name inception_v3_cam_ours --large_feature_map TRUE --epoch 10 "
    "--batch_size 32 --lr_decay_frequency 3 --lr 0.0003 --weight_decay 5.00E-04 --model_structure b2 "
    "--ft_ckpt experiments/inception_v3_cam/last_checkpoint.pth.tar --unfreeze_layer SPG_A4_2 "
    "--project inceptionv3-openimages-0",
    "ILSVRC 2-4": f"--dataset_name ILSVRC --architecture resnet50 {_OTHERS} --method gradcam "
    "--experiment_name resnet50_gradcam_ours --wandb_name resnet50_gradcam_ours --large_feature_map FALSE --epoch 10 "
    "--batch_size 32 --lr_decay_frequency 3 --lr 0.005 --weight_decay 1.00E-04 --model_structure b2 "
    "--unfreeze_layer fc2 --project resnet50-0",
}
# Dual-CAM, scripts/run_eval.sh, and the evaluations of scripts/run_train.sh.
DUALCAM_EVALUATE = (
    f"--dataset_name CUB --architecture vgg16 {_OTHERS} --method cam --experiment_name vgg16_cam "
    "--wandb_name vgg16_cam --large_feature_map FALSE --epoch 50 --batch_size 32 --lr_decay_frequency 15 "
    "--lr 0.00001268269 --weight_decay 5.00E-04 --model_structure vanilla --eval_only --eval_checkpoint_type last "
    "--project vgg16-cub-0"
)

# Data set → its image ids: of one class and one number in a split.
_IMAGE_IDS = {
    "CUB": lambda split, label, n: f"{label + 1:03d}.Bird_{label}/Bird_{label}_{split}_{n}.jpg",
    "ILSVRC": lambda split, label, n: {
        "train": f"train/n0144076{label}/n0144076{label}_{n}.JPEG",
        "val": f"val2/{label}/{n}.jpeg",
        "test": f"val/ILSVRC2012_val_{10 * label + n:08d}.JPEG",
    }[split],
    "OpenImages": lambda split, label, n: f"{split}/0bt_c{label}/{10 * label + n:016x}.jpg",
    "CARS": lambda split, label, n: f"{10 * label + n:05d}.jpg",
}


def write_published(root: Path, name: str, *, classes: int = 2, images: int = 1, images_of_val: int = 1) -> None:
    """A small data set in the folders and formats of a published one, below root/dataset and root/metadata."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        folder = root / "metadata" / name / split
        folder.mkdir(parents=True)
        files: dict[str, list[str]] = {}
        for label in range(classes):
            for n in range(images_of_val if split == "val" else images):
                image_id = _IMAGE_IDS[name](split, label, n)
                path = image_root(name, root / "dataset", split) / image_id
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 90, (120, 160, 3), dtype=np.uint8)
                pixels[30:90, 40:110, label % 3] = 255
                Image.fromarray(pixels).save(path)
                files.setdefault("image_ids", []).append(image_id)
                files.setdefault("class_labels", []).append(f"{image_id},{label}")
                if name != "OpenImages":
                    files.setdefault("image_sizes", []).append(f"{image_id},160,120")
                    files.setdefault("localization", []).append(f"{image_id},40,30,109,89")
                elif split != "train":
                    stem = image_id.removesuffix(".jpg")
                    for kind, box in {"m0bt_5a": (30, 90, 40, 110), "ignore": (0, 10, 0, 160)}.items():
                        mask = np.zeros((120, 160), np.uint8)
                        mask[box[0] : box[1], box[2] : box[3]] = 255
                        Image.fromarray(mask).save(root / "dataset" / name / f"{stem}_{kind}.png")
                    files.setdefault("localization", []).append(f"{image_id},{stem}_m0bt_5a.png,{stem}_ignore.png")
        for key, lines in files.items():
            (folder / f"{key}.txt").write_text("\n".join(lines) + "\n")
