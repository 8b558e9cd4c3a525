"""Measure what class activation maps cost, in forward passes, and compare with grad-cam and torchcam.

    python scripts/benchmark_cam.py                                     # ResNet-50 with random weights, every method
    python scripts/benchmark_cam.py --methods gradcam,layercam --batch_size 4 --threads 1 --repeats 11
    python scripts/benchmark_cam.py --architecture resnet18 --device cuda --batch_size 32
    python scripts/benchmark_cam.py --methods gradcam,scorecam --two_heads

All libraries get the same network, images and classes (the predicted ones) in the same run, and each returns maps in
[0, 1] of the images' size on the CPU. A library's objects are created and destroyed inside the measurement, because
their hooks would slow down the others. grad-cam and torchcam are optional (tests/requirements.txt).

Time: medians over --repeats. In each repeat every library runs right after a plain forward pass of the same images
(no autograd), and "x forward" is the median of these ratios, so other load on the machine affects both. A task whose
warm-up takes longer than --once seconds is not repeated: its time is that of the warm-up, and its CPU memory is not
measured. Score-CAM and Ablation-CAM run the network once per channel; on a CPU, choose --methods or a small network.

Passes: images that go through the network's first layer, as multiples of the batch. Running only the layers after the
target layer again does not count as a pass, but its time is measured.

Memory: the growth above what network and images take. CUDA: torch.cuda.max_memory_allocated of the timed runs. CPU: a
separate process for each figure warms up with a forward pass, returns freed memory to the system, resets the kernel's
peak counter (/proc/self/clear_refs) and runs once; the figure is VmHWM at the end minus VmRSS before. Blocks of 64 KiB
and more are returned to the system when freed (MALLOC_MMAP_THRESHOLD_), so that runs do not reuse each other's memory.
"""

import argparse
import copy
import ctypes
import gc
import importlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ["TQDM_DISABLE"] = "1"  # grad-cam shows a progress bar for each image
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tabulate import tabulate
from torch.nn import functional as F

from wsol import build, dualize
from wsol.cam import CAM_METHODS, CamExtractor, all_methods, get_method, to_scoremaps
from wsol.errors import InputError
from wsol.layout import find_layout
from wsol.run import command
from wsol.run.flag_types import architecture, names, positive, rate, size

FIVE = ("gradcam", "gradcam++", "xgradcam", "layercam", "cam")
TWO_HEADS = ("softmax", "sigmoid_clamped")
LIBRARIES = {"ours": "wsol", "grad-cam": "pytorch_grad_cam", "torchcam": "torchcam.methods"}

# Our method → its class in grad-cam and in torchcam; None if the library does not have it.
PEERS = {
    "cam": (None, "CAM"),
    "gradcam": ("GradCAM", "GradCAM"),
    "gradcam++": ("GradCAMPlusPlus", "GradCAMpp"),
    "xgradcam": ("XGradCAM", "XGradCAM"),
    "layercam": ("LayerCAM", "LayerCAM"),
    "hirescam": ("HiResCAM", None),
    "gradcamelementwise": ("GradCAMElementWise", None),
    "eigencam": ("EigenCAM", None),
    "eigengradcam": ("EigenGradCAM", None),
    "kpcacam": ("KPCA_CAM", None),
    "scorecam": ("ScoreCAM", "ScoreCAM"),
    "ablationcam": ("AblationCAM", None),
    "fullgrad": ("FullGrad", None),
    "fem": ("FEM", None),
    "shapleycam": ("ShapleyCAM", None),
    "finercam": ("FinerCAM", "FinerCAM"),
}
# In a set of methods grad-cam's HiResCAM replaces cam: for pooling and a linear head, both give the same map.
STAND_IN = {("grad-cam", "cam"): "HiResCAM"}


class Task(NamedTuple):
    """One thing to measure: these methods for these heads, in one call if the library can."""

    library: str
    methods: tuple[str, ...]
    heads: tuple[str, ...] = ("softmax",)


class Row(NamedTuple):
    """A block of the table: a title and the tasks of the libraries."""

    title: str
    tasks: list[Task]


class Bench:
    """Network, images and classes, the same for all libraries. Weights and images are random with a fixed seed."""

    def __init__(self, architecture: str, batch_size: int, image_size: int, device: str) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.model = build(architecture, pretrained=False, classifier_form="cam", image_size=image_size)
        self.model.to(self.device).eval()
        self.network = self.model.network
        self.dual = dualize(copy.deepcopy(self.model)).eval()
        self.images = torch.randn(batch_size, 3, image_size, image_size, device=self.device)
        self.passes = 0
        self.class_ids = self.forward().argmax(dim=1)
        first = self._first_layer()
        for network in (self.network, self.dual.network):
            self._count(network.get_submodule(first))

    def _count(self, layer: torch.nn.Module) -> None:
        """Count in the layer's forward; hooks would also count a layer that only returns a recorded output."""
        compute = layer.forward

        def counting(images: torch.Tensor) -> torch.Tensor:
            self.passes += len(images)
            return compute(images)

        layer.forward = counting  # type: ignore[method-assign]

    def _first_layer(self) -> str:
        """Name of the first layer that is computed."""
        seen: list[str] = []
        handles = [
            module.register_forward_hook(lambda _module, _inputs, _output, name=name: seen.append(name))
            for name, module in self.network.named_modules()
            if name and not list(module.children())
        ]
        self.forward()
        for handle in handles:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        return self.network(self.images)

    def run(self, task: Task) -> None:
        """Compute the task's maps as a user of the library gets them, on the CPU."""
        if task.library == "ours":
            self._ours(task)
            return
        for method in task.methods:
            kind = PEERS.get(method, (None, None))[task.library == "torchcam"] or STAND_IN[task.library, method]
            {"grad-cam": self._grad_cam, "torchcam": self._torchcam}[task.library](kind)
            self.network.zero_grad(set_to_none=True)

    def _ours(self, task: Task) -> None:
        model = self.dual if any(head.startswith("sigmoid") for head in task.heads) else self.model
        with CamExtractor(model, task.methods, heads=task.heads) as extract:
            maps = extract(self.images, self.class_ids)
            for variant in extract.variants:
                to_scoremaps(maps[variant], variant.method, self._image_size())[0].cpu()

    def _grad_cam(self, kind: str) -> None:
        library = importlib.import_module(LIBRARIES["grad-cam"])
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        targets = [ClassifierOutputTarget(k) for k in self.class_ids.tolist()]
        cam = getattr(library, kind)(
            model=self.network, target_layers=[self.model.target_layer], reshape_transform=self._to_maps
        )
        try:  # not `with`: it would swallow an IndexError
            # FinerCAM compares only where it chooses the class itself, the predicted one.
            cam(input_tensor=self.images, targets=None if kind == "FinerCAM" else targets)
        finally:
            getattr(cam, "base_cam", cam).activations_and_grads.release()

    def _to_maps(self, activations: torch.Tensor) -> torch.Tensor:
        layout = find_layout(tuple(activations.shape), self._image_size())
        assert layout is not None
        return layout.to_maps(activations)

    def _image_size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def _torchcam(self, kind: str) -> None:
        library = importlib.import_module(LIBRARIES["torchcam"])
        more = {"fc_layer": self.model.softmax_head} if kind == "CAM" else {}
        with getattr(library, kind)(self.network, self.model.target_layer, **more) as extract:
            maps = extract(self.class_ids.tolist(), self.network(self.images))[0]
            F.interpolate(maps[:, None], self.images.shape[-2:], mode="bilinear").cpu()

    def seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# --------------------------------------------------------------------------- memory


def cuda_growth(bench: Bench, work: Callable[[], object]) -> float:
    """Peak MiB that `work` allocates on the GPU beyond what was allocated before."""
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    work()
    return (torch.cuda.max_memory_allocated(bench.device) - before) / 2**20


def cpu_growth(work: Callable[[], object]) -> float | None:
    """Peak MiB by which this process grows during `work`; None if the kernel does not report it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    work()
    return max(_status("VmHWM") - before, 0) / 1024


def _status(key: str) -> int:
    """A value of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def growth_in_this_process(settings: tuple, threads: int | None, task: Task | None) -> float | None:
    """In a child process: cpu_growth of a task, or of a plain forward pass (None), after a warm-up."""
    if threads:
        torch.set_num_threads(threads)
    bench = Bench(*settings)
    bench.forward()
    if task is not None:
        _is_installed(task.library)  # imports it, so that its code is not counted
    return cpu_growth(bench.forward if task is None else lambda: bench.run(task))


def growth_in_children(
    settings: tuple, threads: int | None, tasks: Sequence[Task | None]
) -> dict[Task | None, float | None]:
    """cpu_growth of each task in its own process, forked from one that has imported everything and run nothing."""
    # The C library reads these when a process starts.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *LIBRARIES.values()])
    growth: dict[Task | None, float | None] = {}
    for task in tasks:
        _tell(f"memory: {_describe(task)}")
        with context.Pool(1) as pool:
            growth[task] = pool.apply(growth_in_this_process, (settings, threads, task))
    return growth


# --------------------------------------------------------------------------- what is measured, and how


def rows_to_measure(methods: Sequence[str], two_heads: bool) -> list[Row]:
    """Each method by itself; then those of the five together, for one head by all libraries and for two by ours."""
    single = TWO_HEADS if two_heads else TWO_HEADS[:1]
    rows = []
    for method in methods:
        peers = dict(zip(("grad-cam", "torchcam"), PEERS.get(method, (None, None)), strict=True))
        rows.append(
            Row(
                method + (", two heads" if two_heads else ""),
                [
                    Task("ours", (method,), single),
                    *(Task(library, (method,)) for library, kind in peers.items() if kind),
                ],
            )
        )
    together = tuple(method for method in FIVE if method in methods)
    if len(together) > 1:
        title = f"{'five' if together == FIVE else len(together)} methods"
        rows.append(Row(title, [Task(library, together) for library in LIBRARIES]))
        rows.append(Row(f"{title}, two heads", [Task("ours", together, TWO_HEADS)]))
    return rows


class Measured(NamedTuple):
    """The figures of a task.

    Attributes:
        seconds: median time.
        ratio: time relative to a forward pass.
        passes: number of forward passes.
        memory: MiB; None if unknown.
    """

    seconds: float
    ratio: float
    passes: float
    memory: float | None


def measure(bench: Bench, rows: Sequence[Row], repeats: int, once: float) -> tuple[dict[Task, Measured | str], float]:
    """Each task's figures (memory on CUDA only), or the reason why it has none; and the seconds of a forward pass."""
    warm: dict[Task, tuple[float, float, float]] = {}
    figures: dict[Task, Measured | str] = {}
    for task in (task for row in rows for task in row.tasks):
        if not _is_installed(task.library):
            figures[task] = "not installed"
            continue
        _tell(f"warming up: {_describe(task)}")
        bench.forward()
        plain = bench.seconds(bench.forward)
        bench.passes = 0
        try:
            warm[task] = bench.seconds(partial(bench.run, task)), plain, bench.passes / len(bench.images)
        except Exception as error:  # that a library fails for this network is a result, too
            if task.library == "ours":
                raise
            figures[task] = f"fails: {type(error).__name__}"
    times: dict[Task, list[tuple[float, float]]] = {task: [] for task in warm}
    memory: dict[Task, float | None] = dict.fromkeys(warm)
    for repeat in range(repeats):
        _tell(f"repeat {repeat + 1} of {repeats}")
        for task in (task for task, (seconds, _, _) in warm.items() if seconds <= once):
            plain = bench.seconds(bench.forward)
            times[task].append((bench.seconds(partial(bench.run, task)), plain))
    if bench.device.type == "cuda":
        memory = {task: cuda_growth(bench, partial(bench.run, task)) for task in warm}
    for task, (first, plain, passes) in warm.items():
        pairs = times[task] or [(first, plain)]
        figures[task] = Measured(
            statistics.median(t for t, _ in pairs), statistics.median(t / p for t, p in pairs), passes, memory[task]
        )
    forward = [p for pairs in times.values() for _, p in pairs] or [p for _, p, _ in warm.values()]
    return figures, statistics.median(forward)


def _is_installed(library: str) -> bool:
    try:
        importlib.import_module(LIBRARIES[library])
        return True
    except ImportError:
        return False


def _describe(task: Task | None) -> str:
    return "a forward pass" if task is None else f"{task.library}, {'+'.join(task.methods)}"


def _tell(text: str) -> None:
    """Show progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- the command


def table(rows: Sequence[Row], results: dict[Task, Measured | str], memory_of_forward: float | None) -> str:
    """One block per row, one line per library; the last column is the library's time relative to ours."""
    lines: list[list[str]] = []
    for row in rows:
        ours = results[row.tasks[0]]
        for task in row.tasks:
            title = row.title if task is row.tasks[0] else ""
            figures = results[task]
            if isinstance(figures, str):
                lines.append([title, task.library, figures])
                continue
            memory = figures.memory
            times_memory = memory / memory_of_forward if memory is not None and memory_of_forward else None
            lines.append(
                [
                    title,
                    task.library,
                    f"{figures.seconds:.3f}",
                    f"{figures.ratio:.2f}",
                    f"{figures.passes:g}",
                    "-" if memory is None else f"{memory:.0f}",
                    "-" if times_memory is None else f"{times_memory:.2f}",
                    "" if figures is ours or isinstance(ours, str) else f"{figures.ratio / ours.ratio:.1f}",
                ]
            )
        lines.append([])
    heads = ["method", "library", "seconds", "x forward", "passes", "MiB", "x forward", "x ours"]
    return tabulate(lines[:-1], heads, colalign=("left", "left", *["right"] * 6), disable_numparse=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--architecture", type=architecture, default="resnet50", help="default: %(default)s, with random weights")
    add("--batch_size", type=positive, default=2, help="default: %(default)s")
    add("--image_size", type=size, default=224, help="default: %(default)s")
    add("--methods", type=names, default=["all"], help=f"of {', '.join(CAM_METHODS)}; default: all")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=positive, help="CPU threads; default: torch's choice")
    add(
        "--two_heads",
        action="store_true",
        help="in the single-method rows, ours explains the softmax and the clamped sigmoid head",
    )
    add("--repeats", type=positive, default=5, help="default: %(default)s")
    add(
        "--once",
        type=rate,
        default=30.0,
        metavar="SECONDS",
        help="do not repeat tasks slower than this; default: %(default)s",
    )
    add("--no_memory", action="store_true", help="do not measure CPU memory, which takes a process per figure")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    able = [name for name in all_methods() if not CAM_METHODS[name].fitted]  # others would need a fit first
    methods = able if args.methods == ["all"] else [get_method(name).name for name in args.methods]
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device")
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = args.architecture, args.batch_size, args.image_size, args.device
    rows = rows_to_measure(methods, args.two_heads)
    bench = Bench(*settings)
    results, forward = measure(bench, rows, args.repeats, args.once)
    memory_of_forward = None
    if args.device == "cuda":
        memory_of_forward = cuda_growth(bench, bench.forward)
    elif not args.no_memory:
        measured = {
            task: figures
            for task, figures in results.items()
            if isinstance(figures, Measured) and figures.seconds <= args.once
        }
        growth = growth_in_children(settings, args.threads, [None, *measured])
        memory_of_forward = growth[None]
        for task, figures in measured.items():
            results[task] = figures._replace(memory=growth[task])
    _tell("")
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.architecture}, {args.batch_size} x {args.image_size} x {args.image_size}, {where}, torch "
        f"{torch.__version__}; medians of {args.repeats}"
    )
    print(f"one forward pass: {forward:.3f} s" + (f", {memory_of_forward:.0f} MiB" if memory_of_forward else "") + "\n")
    print(table(rows, results, memory_of_forward))


if __name__ == "__main__":
    sys.exit(command.run(main))
