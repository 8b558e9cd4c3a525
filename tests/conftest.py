"""What the tests share: a tiny network, a tiny data set, runs of the command and what they leave, the `slow` mark."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `pytest tests` finds the project from any folder

# wsolevaluation's own files: where WSOL_METADATA says, or beside the checkout. Tests of them skip where there are none.
REAL = Path(os.environ.get("WSOL_METADATA", ROOT.parent / "shared" / "metadata"))

import main as program
from wsol.backbones import ARCHITECTURES, Architecture
from wsol.cam import CAM_METHODS, all_methods
from wsol.classifier import Classifier
from wsol.run import checkpoint

# What `all` stands for, but those that are fitted first: see tests/test_broadcam.py.
METHODS = [name for name in all_methods() if not CAM_METHODS[name].fitted]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run by scripts/test.sh --slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: scripts/test.sh --slow"))


class TinyNet(nn.Module):
    """Two strided convolutions with BatchNorm and dropout, global average pooling, a linear head."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4, padding=2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.fc(self.features(images).mean(dim=(2, 3)))


@contextlib.contextmanager
def tiny_network():
    """`--architecture tiny`, seeded weights standing in for pretrained ones."""

    def builder(options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Classifier(TinyNet(), "fc", target_layer="features.6", head_is_new=not options.pretrained)

    ARCHITECTURES["tiny"] = Architecture("tiny", builder)
    try:
        yield
    finally:
        del ARCHITECTURES["tiny"]


@pytest.fixture(autouse=True)
def tiny_architecture():
    """Every test knows the tiny network."""
    with tiny_network():
        yield


@pytest.fixture(autouse=True)
def deterministic():
    torch.manual_seed(0)
    np.random.seed(0)


def write_dataset(
    root: Path,
    name: str,
    *,
    classes: int = 3,
    images: int = 4,
    splits=("train", "val", "test"),
    form: str = "boxes",
    side: int = 48,
    folder: str = "",
    labels=None,
) -> Path:
    """A data set of `images` a class in wsolevaluation's format below root/{dataset,metadata}; returns root.

    Every image is noise with a bright square whose colour tells the class. form:
    "boxes", "masks" or "both"; folder: where images lie below the data set's own.
    """
    random = np.random.default_rng(0)
    labels = list(range(classes)) if labels is None else labels
    for split in splits:
        meta = root / "metadata" / name / split
        meta.mkdir(parents=True)
        lines = {key: [] for key in ("image_ids", "class_labels", "image_sizes", "localization", "masks")}
        for label in labels:
            for number in range(images):
                image_id = f"{split}/{label}/{number}.png"
                width, height = int(random.integers(side - 8, side + 8)), int(random.integers(side - 8, side + 8))
                pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
                x, y = int(random.integers(2, width // 2)), int(random.integers(2, height // 2))
                w, h = width // 3, height // 3
                pixels[y : y + h, x : x + w] = (
                    np.array([255, 60, 60])
                    if label % 3 == 0
                    else np.array([60, 255, 60])
                    if label % 3 == 1
                    else np.array([60, 60, 255])
                )
                path = root / "dataset" / name / folder / image_id
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                mask = np.zeros((height, width), np.uint8)
                mask[y : y + h, x : x + w] = 255
                mask_id = f"{split}/{label}/{number}_mask.png"
                Image.fromarray(mask).save(root / "dataset" / name / folder / mask_id)
                lines["image_ids"].append(image_id)
                lines["class_labels"].append(f"{image_id},{label}")
                lines["image_sizes"].append(f"{image_id},{width},{height}")
                box = f"{image_id},{x},{y},{x + w - 1},{y + h - 1}"
                mask_line = f"{image_id},{folder + '/' if folder else ''}{mask_id},"
                lines["localization"].append(mask_line if form == "masks" else box)
                if form == "both":
                    lines["masks"].append(mask_line)
        for key, content in lines.items():
            if content:
                (meta / f"{key}.txt").write_text("\n".join(content) + "\n")
    return root


@pytest.fixture
def shapes(tmp_path) -> Path:
    """A data set `Shapes` of three classes with boxes and masks."""
    return write_dataset(tmp_path, "Shapes", form="both")


def arguments(root: Path, *more: str, dataset: str = "Shapes", name: str = "run") -> list[str]:
    """A main.py command line on the tiny network and a data set below `root`: seconds, not minutes.

    Unless `more` says otherwise, the paper's branch and no refinement, so that tests of other things need not wait.
    """
    return [
        "--dataset_name",
        dataset,
        "--architecture",
        "tiny",
        "--data_root",
        str(root / "dataset"),
        "--metadata_root",
        str(root / "metadata"),
        "--root",
        str(root / "runs"),
        "--experiment_name",
        name,
        "--crop_size",
        "48",
        "--resize_size",
        "56",
        "--batch_size",
        "4",
        "--workers",
        "0",
        "--epochs",
        "2",
        "--cam_curve_interval",
        "0.02",
        "--bootstrap",
        "100",
        "--branch_choice",
        "given",
        "--refine",
        "none",
        *more,
    ]


def start_main(root: Path, *argv: str) -> subprocess.Popen:
    """main.py in a process group of its own, in a folder, with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *argv],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )


def files_below(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """{path below the folder: content} of every file, except those with these names."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def checkpoint_content(folder: Path, name: str = "last") -> dict:
    """What a run kept in its checkpoint `name`."""
    return torch.load(folder / f"{name}{checkpoint.SUFFIX}", weights_only=True)


def metrics_without_times(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, without their seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class Killed(BaseException):
    """Ends the program where kill -9 would."""


def killed_after(monkeypatch, writes: int, *argv: str) -> None:
    """Run main() until it is about to write another checkpoint."""
    real, done = checkpoint.save, []

    def save_then_die(path, content):
        if len(done) == writes:
            raise Killed
        done.append(path)
        real(path, content)

    monkeypatch.setattr(checkpoint, "save", save_then_die)
    with pytest.raises(Killed):
        program.main(list(argv))
    monkeypatch.setattr(checkpoint, "save", real)
