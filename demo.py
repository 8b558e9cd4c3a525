"""BroadCAM's figure: what CAM methods show of pictures when there is little, some, and enough to train on.

python demo.py                                                     # the built-in example, some minutes without a GPU
python demo.py --cam_methods CAM GradCAM LayerCAM BroadCAM --proportions 1 5 20 100
python demo.py --dataset_name CUB --architecture resnet50 --image_id Black_Footed_Albatross_0046_18
python demo.py --image photo.jpg other.jpg

For each class in a picture there is one figure: a row for each method, a column for each proportion of the training
images, the maps over the picture, and where it is known the ground truth. What has to be trained for that, a softmax
head behind the frozen ImageNet trunk for each proportion and BroadCAM's fit to the same images, is trained by main.py
and kept in --root, so the next call draws at once. Maps are sums over views of the picture, as in the paper (--scales,
--flip), with negative places cut, divided by their maximum.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until wsol.run.command listens: end, and print no traceback

import argparse
from typing import NamedTuple

from config import DEFAULT_ARCHITECTURE, gpu_indices, parse_picture_args
from wsol.cam.registry import CAM_METHODS
from wsol.errors import InputError, nearest
from wsol.run import command
from wsol.run.figure_options import COLORMAPS, DEFAULT_COLORMAP
from wsol.run.flag_types import architecture, boolean, count, numbers, percentage, positive, random_seed

METHODS = ["cam", "gradcam", "layercam", "broadcam"]
PROPORTIONS = [1.0, 2.0, 5.0, 8.0, 10.0, 20.0, 50.0, 80.0, 100.0]
PICTURES = 3  # that are drawn of the built-in example


def words_of(items: list[str]) -> list[str]:
    """The words of a list however it is written: CAM GradCAM, CAM,GradCAM or [CAM, GradCAM]; each once."""
    words = " ".join(items).replace(",", " ").translate(str.maketrans("", "", "[]()'\"%")).split()
    return list(dict.fromkeys(words))


def methods_of(items: list[str]) -> list[str]:
    """Names in CAM_METHODS, which may be written in any case and with dashes: GradCAM, Grad-CAM, ScoreCAM."""
    found = []
    for word in words_of(items):
        name = word.lower().replace("-", "").replace("_", "")
        if name not in CAM_METHODS:
            raise InputError(
                f"--cam_methods: unknown method '{word}'{nearest(name, CAM_METHODS)} (known: {', '.join(CAM_METHODS)})"
            )
        found.append(name)
    return list(dict.fromkeys(found))


def proportions_of(items: list[str]) -> list[float]:
    """Percentages above 0 and at most 100, lowest first; "001" is 1."""
    found = []
    for word in words_of(items):
        try:
            found.append(percentage(word))
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--proportions: {error}") from None
    return sorted(set(found))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cam_methods", nargs="+", default=METHODS, metavar="NAME", help=f"default: {' '.join(METHODS)}")
    add("--proportions", nargs="+", default=[f"{p:g}" for p in PROPORTIONS], metavar="P",
        help="per cent of the training images (default: %(default)s)")  # fmt: skip
    add("--image", nargs="+", default=[], metavar="FILE", help="pictures or folders of them")
    add("--image_id", nargs="+", default=[], metavar="ID", help="images of the test split: their ids, or the end of it")
    add("--dataset_name", default="Synthetic", help="what is trained on (default: %(default)s)")
    add("--data_root", default="dataset", help="default: %(default)s")
    add("--metadata_root", default="metadata", help="default: %(default)s")
    add("--architecture", type=architecture, default=DEFAULT_ARCHITECTURE, metavar="NAME", help="default: %(default)s")
    add("--root", default="experiments/demo", help="networks and figures (default: %(default)s)")
    add("--epochs", type=positive, default=10, help="of each head (default: %(default)s)")
    add("--crop_size", type=positive, default=224, help="side of the network's input (default: %(default)s)")
    add("--scales", type=numbers, default=[0.5, 1.0, 1.5, 2.0], metavar="X,Y,...", help="default: 0.5,1,1.5,2")
    add("--flip", type=boolean, default=True, metavar="TRUE|FALSE", help="mirrored views, too (default: TRUE)")
    add("--colormap", choices=COLORMAPS, default=DEFAULT_COLORMAP, help="default: %(default)s")
    add("--seed", type=random_seed, default=0, help="default: %(default)s")
    add("--num_workers", type=count, default=4, help="data loading processes (default: %(default)s)")
    add("--gpus", default="0", help="CUDA device indices (default: %(default)s)")
    args = parser.parse_args(argv)
    args.cam_methods, args.proportions = methods_of(args.cam_methods), proportions_of(args.proportions)
    if not args.cam_methods or not args.proportions:
        raise InputError("--cam_methods and --proportions need a name and a number at least")
    return args


if __name__ == "__main__":
    command.check_early(parse_args)  # the imports below take seconds; --help and mistyped flags should not

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import main as training
from data_loaders import Pictures
from inference import Network, build_network
from wsol.backbones import get_architecture
from wsol.cam import CamExtractor, to_scoremaps
from wsol.cam.variant import Variant
from wsol.datasets.images import load_picture
from wsol.datasets.load import load_data
from wsol.datasets.pictures import file_stems, find_pictures
from wsol.datasets.reader import SplitMetadata
from wsol.device import select_device, to_device
from wsol.evaluation.ground_truth import load_ground_truth
from wsol.files import write_file
from wsol.geometry import RESOLUTION
from wsol.log import log, progress, start_log
from wsol.run import fitted
from wsol.run.checkpoint import SUFFIX
from wsol.run.overlay import jpeg_bytes
from wsol.run.seeds_sheet import Truth, seeds_sheet


class Subject(NamedTuple):
    """A picture to be drawn. class_id: None where nobody has said what it shows. truth: None where it is not known."""

    path: Path
    stem: str
    class_id: int | None
    truth: Truth | None


def main(argv: list[str] | None = None) -> list[Path]:
    """Find the pictures, train what is missing, draw; returns the figures."""
    args = parse_args(argv)
    start_log(keep=False)
    files = find_pictures(args.image, Path(args.root)) if args.image else []
    data = load_data(
        args.dataset_name, args.data_root, args.metadata_root, args.data_root, splits=("test",), seed=args.seed
    )
    subjects = [Subject(picture.path, picture.stem, None, None) for picture in files]
    if args.image_id or not files:
        subjects += of_split(data.splits["test"], args.image_id)
    command.when_interrupted("what was trained is kept; the same command goes on")
    runs = [train(args, proportion) for proportion in args.proportions]

    start_log(keep=False)
    device = select_device(gpu_indices(args.gpus))
    networks = [network_of(args, run) for run in runs]
    subjects = name_classes(args, subjects, networks[-1], device)
    maps = [
        draw_maps(args, subjects, network, device) for network in progress(networks, "maps", unit="proportion")
    ]  # [proportion][subject][method]
    figures = []
    for number, subject in enumerate(subjects):
        assert subject.class_id is not None
        name = data.class_names[subject.class_id]
        sheet = seeds_sheet(
            np.asarray(load_picture(subject.path)),
            f"{subject.stem}: {name}",
            {method: [of_network[number][method] for of_network in maps] for method in args.cam_methods},
            [f"{proportion:g} %" for proportion in args.proportions],
            subject.truth,
            args.colormap,
        )
        path = Path(args.root) / "figures" / f"{subject.stem}_{name.replace('/', ' ')}.jpg"
        figures.append(write_file(path, jpeg_bytes(sheet)))
        log.info("%s", path)
    return figures


def of_split(split: SplitMetadata, wanted: list[str]) -> list[Subject]:
    """Images of a split with their ground truth: those named, or the first one of some classes.

    Raises:
        InputError: no image, or several, have this id or end of it.
    """
    indices = []
    for name in wanted:
        stems = [str(Path(image_id).with_suffix("")) for image_id in split.image_ids]
        found = [i for i, stem in enumerate(stems) if name in (stem, split.image_ids[i])]
        found = found or [i for i, stem in enumerate(stems) if stem.endswith(name)]
        if len(found) != 1:
            what = "no image" if not found else f"{len(found)} images, such as {split.image_ids[found[1]]},"
            raise InputError(f"--image_id {name}: {what} of the test split has this id{nearest(name, split.image_ids)}")
        indices += found
    if not wanted:
        _, first = np.unique(split.labels, return_index=True)
        indices = first[:: max(len(first) // PICTURES, 1)][:PICTURES].tolist()
    truths = load_ground_truth(split, indices)
    stems = file_stems([split.image_ids[index].replace("/", "_") for index in indices])
    return [
        Subject(
            split.image_path(index),
            stems[number],
            int(split.labels[index]),
            Truth(
                None if truths.boxes is None else truths.boxes[number],
                None if truths.masks is None else truths.masks[number] == 1,
            ),
        )
        for number, index in enumerate(indices)
    ]


def train(args: argparse.Namespace, proportion: float) -> Path:
    """The run of a proportion, trained now unless it is there: a softmax head, and BroadCAM's fit."""
    root, fits = Path(args.root), any(map(fitted.is_fitted, args.cam_methods))
    name = f"{args.dataset_name}-{args.architecture}-{args.crop_size}-{proportion:g}-{args.seed}"
    run = root / name
    if (run / f"last{SUFFIX}").is_file() and (run / fitted.FILE).is_file() >= fits:
        return run
    log.info("\n%g %% of the training images:", proportion)
    flags = ["--root", str(root), "--experiment_name", name, "--train_only"]
    if (run / "config.yaml").is_file():
        flags += ["--resume", "--methods", "gradcam,broadcam"]
    else:
        flags += ["--dataset_name", args.dataset_name, "--data_root", args.data_root]
        flags += ["--metadata_root", args.metadata_root, "--architecture", args.architecture]
        flags += ["--model_structure", "vanilla", "--unfreeze_layer", "fc", "--methods", "gradcam,broadcam"]
        flags += ["--proportion", f"{proportion:g}", "--epochs", str(args.epochs), "--seed", str(args.seed)]
        flags += ["--crop_size", str(args.crop_size), "--resize_size", str(round(args.crop_size * 8 / 7))]
        flags += ["--val_every", str(args.epochs), "--workers", str(args.num_workers), "--gpus", args.gpus]
    training.main(flags)
    return run


def network_of(args: argparse.Namespace, run: Path) -> Network:
    """The trained network of a run, with what its methods were fitted to."""
    flags = [str(run), "--out", args.root, "--ckpt", str(run / f"last{SUFFIX}"), "--crop_size", str(args.crop_size)]
    return build_network(parse_picture_args([*flags, "--methods", ",".join(args.cam_methods)]))


def images_of(args: argparse.Namespace, subjects: list[Subject], device: torch.device) -> torch.Tensor:
    """The pictures as the network takes them: (N, 3, H, W)."""
    network = get_architecture(args.architecture)
    pictures = Pictures([subject.path for subject in subjects], args.crop_size, network.mean, network.std)
    return to_device(torch.stack([pictures[number][0] for number in range(len(subjects))]), device)


def name_classes(
    args: argparse.Namespace, subjects: list[Subject], network: Network, device: torch.device
) -> list[Subject]:
    """The subjects, those of which nobody has said what they show as the network with most training sees them."""
    model = network.model.to(device).eval()
    with torch.no_grad():
        seen = model(images_of(args, subjects, device)).logits.argmax(dim=1).tolist()
    return [
        subject if subject.class_id is not None else subject._replace(class_id=class_id)
        for subject, class_id in zip(subjects, seen, strict=True)
    ]


def draw_maps(
    args: argparse.Namespace, subjects: list[Subject], network: Network, device: torch.device
) -> list[dict[str, NDArray[np.float32]]]:
    """For each subject, its class's map of each method: (224, 224) in [0, 1], divided by the maximum."""
    model = network.model.to(device, memory_format=torch.channels_last)
    extractor = CamExtractor(
        model,
        network.methods,
        heads=["softmax"],
        scales=args.scales,
        flip=args.flip,
        fitted={name: weight.to(device) for name, weight in network.fitted.items()},
    )
    found: list[dict[str, NDArray[np.float32]]] = []
    with extractor as extract:
        for subject in subjects:
            assert subject.class_id is not None
            raw = extract(images_of(args, [subject], device), [subject.class_id])
            maps = {}
            for variant, values in raw.items():
                assert isinstance(variant, Variant)
                scores, _ = to_scoremaps(values, variant.method, (RESOLUTION, RESOLUTION), "max")
                maps[variant.method] = scores[0].cpu().numpy()
            found.append(maps)
    return found


if __name__ == "__main__":
    sys.exit(command.run(lambda: main() and None))
