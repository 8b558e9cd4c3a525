"""main.py as several processes: one process's results and losses, resumed by any number, ended by any one's end.

Processes of the first tests are forked where torch and the project are imported already; the last ones are torchrun's.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, arguments, checkpoint_content, tiny_network, write_dataset

import main as program
from wsol import distributed, training
from wsol.backbones import ARCHITECTURES, Architecture
from wsol.classifier import Classifier
from wsol.run import command, fitted

FORK = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import test_several_processes
test_several_processes.fork(*json.loads(sys.argv[3]))
"""


class PlainNet(torch.nn.Module):
    """Nothing that looks at other images of a batch, and nothing that draws."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, stride=4, padding=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, 2, 1),
            torch.nn.ReLU(),
        )
        self.fc = torch.nn.Linear(16, 1000)

    def forward(self, images):
        return self.fc(self.features(images).mean(dim=(2, 3)))


def add_plain():
    def builder(options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Classifier(PlainNet(), "fc", target_layer="features.3", head_is_new=not options.pretrained)

    ARCHITECTURES["plain"] = Architecture("plain", builder)


@pytest.fixture(autouse=True)
def plain_architecture():
    add_plain()
    yield
    del ARCHITECTURES["plain"]


def process(rank, size, port, argv, stop_at, root):
    """One process of a run; it is told to stop in its step `stop_at`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    add_plain()
    steps = []
    if stop_at:
        command.stop_requested = lambda: steps.append(1) or len(steps) == stop_at
    code = 0
    with tiny_network(), open(f"{root}/out-{rank}.txt", "w") as sys.stdout:
        try:
            program.main(argv)
        except command.Interrupted:
            code = 130
    os._exit(code)


def fork(runs):
    """Each (processes, command line, who is told to stop, in which step, code that all end with), one after another."""
    for size, argv, who, step, code in runs:
        port = distributed_port()
        context = torch.multiprocessing.get_context("fork")
        root = argv[argv.index("--root") + 1]
        Path(root).mkdir(parents=True, exist_ok=True)
        started = [
            context.Process(target=process, args=(rank, size, port, argv, step if rank == who else 0, root))
            for rank in range(size)
        ]
        for one in started:
            one.start()
        for one in started:
            one.join(120)
        assert [one.exitcode for one in started] == [code] * size, argv
        assert not any(Path(f"{root}/out-{rank}.txt").read_text() for rank in range(1, size)), (
            "only the main one speaks"
        )


def distributed_port():
    """A port that is free now."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_all(*runs):
    argv = [sys.executable, "-c", FORK, str(ROOT), str(ROOT / "tests"), json.dumps([runs])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr


def several(size, *argv, who=0, step=0, code=0):
    return size, argv, who, step, code


def losses(root, name):
    lines = [json.loads(line) for line in (root / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["epoch"], line["split"]) for line in lines], [
        [line[key] for key in ("loss", "top1", "maxboxacc_v2") if key in line] for line in lines
    ]


def without_times(results):
    return {key: value for key, value in results.items() if key not in ("seconds", "cost", "config")}


@pytest.fixture
def five(tmp_path):
    """Seven images of each of three classes: batches of 4 leave one image over, batches of 8 five."""
    return write_dataset(tmp_path, "Shapes", form="both", images=7)


WHOLE = ["--model_structure", "vanilla", "--unfreeze_layer", "all", "--lr", "0.01", "--architecture", "plain"]
SETTINGS = {
    "features": ["--augment", "none", "--branch_choice", "val", "--batch_size", "5"],
    "views": ["--augment", "crop_flip", "--feature_views", "2", "--feature_cache", "disk", "--batch_size", "8"],
    "images": [*WHOLE, "--augment", "crop_flip", "--batch_size", "8"],
    "a branch on images": [*"--augment crop_flip --architecture plain --branch_mu 1 --batch_size 8".split()],
}


def test_two_and_three_processes_train_as_one_does(five):
    """Losses, accuracies and val figures of each epoch, and the weights; 21 images and batches of 5 and 8."""
    runs = []
    for setting, flags in SETTINGS.items():
        flags = ["--methods", "cam,broadcam", "--bls_step", "4", "--val_every", "1", "--train_only", *flags]
        program.main(arguments(five, *flags, name=f"{setting} 1"))
        runs += [several(size, *arguments(five, *flags, name=f"{setting} {size}")) for size in (2, 3)]
    run_all(*runs)
    for setting in SETTINGS:
        expected, weights = losses(five, f"{setting} 1"), checkpoint_content(five / f"runs/{setting} 1")["state_dict"]
        for size in (2, 3):
            found, name = losses(five, f"{setting} {size}"), f"{setting} {size}"
            assert found[0] == expected[0]
            for one, other in zip(found[1], expected[1], strict=True):
                assert one == pytest.approx(other, rel=1e-4, abs=1e-4), name
            fits = [fitted.load(five / f"runs/{setting} {n}").fitted.weight for n in (1, size)]
            torch.testing.assert_close(fits[1], fits[0], rtol=1e-3, atol=1e-5)
            state = checkpoint_content(five / f"runs/{name}")["state_dict"]
            for key, tensor in weights.items():
                torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


def test_two_and_three_processes_measure_what_one_does(five):
    """To the last digit, in the same batches: every number of results.json, each image's outcomes, every class's."""
    program.main(arguments(five, "--train_only"))
    evaluation = ["--root", str(five / "runs"), "--experiment_name", "run", "--eval_only", "--workers", "0"]
    evaluation += ["--methods", "cam,gradcam", "--fidelity", "confidence,pointing"]
    alone = program.main([*evaluation, "--batch_size", "4", "--refine", "none,affinity"])
    sizes = (2, 3)
    run_all(*(several(size, *evaluation, "--batch_size", str(4 * size), "--refine", "none,affinity") for size in sizes))
    for number in range(2, 2 + len(sizes)):
        folder = five / f"runs/run/eval-{number}"
        found = json.loads((folder / "results.json").read_text())
        assert without_times(found) == without_times(json.loads(json.dumps(alone)))
        for name in ("per_image.npz", "per_class.csv", "results.csv"):
            assert (folder / name).read_bytes() == (five / "runs/run/eval-1" / name).read_bytes(), name
        assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(
            path.name for path in (five / "runs/run/eval-1/figures").iterdir()
        )


@pytest.mark.parametrize("setting", ["features", "images"])
def test_a_stopped_run_goes_on_with_another_number_of_processes(five, setting):
    """One of them is told to stop; all end behind the same step, and 1, 2 or 3 go on."""
    flags = ["--methods", "cam", "--epochs", "3", "--train_only", "--branch_choice", "given", "--vanilla_epochs", "0"]
    flags = [*SETTINGS[setting], *flags]
    program.main(arguments(five, *flags, name="whole"))
    resume = ["--root", str(five / "runs"), "--resume", "--experiment_name"]
    run_all(
        *(several(2, *arguments(five, *flags, name=f"cut-{size}"), who=1, step=5, code=130) for size in (1, 2, 3)),
        *(several(size, *resume, f"cut-{size}") for size in (2, 3)),
    )
    assert "within" in checkpoint_content(five / "runs/cut-1")
    program.main([*resume, "cut-1"])
    weights = checkpoint_content(five / "runs/whole")["state_dict"]
    for size in (1, 2, 3):
        found = checkpoint_content(five / f"runs/cut-{size}")
        assert found["epoch"] == 3 and "within" not in found
        for key, tensor in weights.items():
            torch.testing.assert_close(found["state_dict"][key], tensor, rtol=1e-4, atol=1e-5)


def test_every_method_trains_with_two_processes(five):
    flags = [
        "--methods",
        "cam",
        "--model_structure",
        "vanilla",
        "--unfreeze_layer",
        "all",
        "--train_only",
        "--epochs",
        "1",
    ]
    methods = ("has", "cutmix", "acol", "adl")
    spg = ["--wsol_method", "spg", "--architecture", "resnet50", "--pretrained", "FALSE", "--crop_size", "32"]
    run_all(
        *(several(2, *arguments(five, *flags, "--wsol_method", method, name=method)) for method in methods),
        several(2, *arguments(five, *flags, *spg, name="spg")),
        several(2, *arguments(five, *flags, "--amp", "bf16", name="bf16")),
    )
    for method in (*methods, "spg", "bf16"):
        assert all(np.isfinite(loss[0]) for loss in losses(five, method)[1])


def test_the_shares_of_a_batch():
    batches = distributed.BatchShares(range(7), 3)
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]] and len(batches) == 3
    assert list(batches.counts()) == [(3, 3), (3, 3), (1, 1)]
    assert len(distributed.BatchShares(range(7), 3, drop_last=True)) == 2
    assert distributed.shard_of_batches(5, 2) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rank", range(3))
def test_shares_of_three(monkeypatch, rank):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    shares = distributed.BatchShares(range(10, 18), 4)
    assert next(iter(shares)) == [[10, 13], [11], [12]][rank]
    few = distributed.BatchShares([5, 6], 4)
    assert list(few) == [[[5], [6], [5]][rank]] and list(few.counts()) == [[(1, 2), (1, 2), (0, 2)][rank]]
    own = distributed.BatchShares([5, 6], 4, own=True)
    assert list(own) == [[[6], [], [5]][rank]] and list(own.counts()) == [[(1, 2), (0, 2), (1, 2)][rank]]
    assert distributed.shard_of_batches(9, 2) == [[0, 1, 6, 7], [2, 3, 8], [4, 5]][rank]
    with pytest.raises(ValueError, match="--batch_size 2: each of 3 processes needs an image"):
        distributed.share_of(2)


def test_a_device_for_each_process(monkeypatch):
    from wsol.device import device_index

    assert device_index([2, 3], 4) == 2
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "3" if name == "WORLD_SIZE" else "1")
    assert device_index([0], 4) == 1 and device_index([2, 3], 4) == 3
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="more processes on this machine than it may use CUDA devices, 2"):
        device_index([0, 1], 4)


def test_synchronized_batchnorm_keeps_the_network():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    images, names = torch.randn(2, 3, 8, 8), list(network.state_dict())
    before = network(images)
    network = distributed.synchronize_batchnorm(network)
    assert isinstance(network[1], torch.nn.SyncBatchNorm) and list(network.state_dict()) == names
    assert torch.equal(network(images), before)


def test_a_process_without_images_moves_no_weight():
    model = Classifier(PlainNet(), "fc", target_layer="features.3").set_trainable(["trunk", "softmax_head"])
    _, loss = training.Step(model, lambda *_: pytest.fail("no image"))(
        torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)
    )
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())


# ------------------------------------------------------------------- torchrun


def torchrun(root, *more, program=(str(ROOT / "main.py"),)):
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    argv += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", *program]
    argv += [
        "--dataset_name",
        "Shapes",
        "--root",
        "runs",
        "--experiment_name",
        "run",
        *WHOLE[:4],
        "--lr",
        "1e-6",
        *more,
    ]
    argv += "--architecture mobilenetv2_035 --pretrained FALSE --crop_size 32 --resize_size 40 --batch_size 4".split()
    argv += "--epochs 2000 --val_every 1000 --workers 1 --methods gradcam --train_only".split()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=env
    )


def processes_in(root):
    """{process id: its RANK or ""} of those that work in a folder."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").readlink() == root.resolve():
                variables = dict(item.partition("=")[::2] for item in (folder / "environ").read_text().split("\0"))
                found[int(folder.name)] = variables.get("RANK", "")
        except OSError:  # it has ended, or is another user's
            continue
    return found


def until_it_trains(run, root):
    metrics, started = root / "runs/run/metrics.jsonl", time.monotonic()
    while not metrics.exists() and run.poll() is None and time.monotonic() - started < 120:
        time.sleep(0.1)
    assert metrics.exists(), run.communicate()[0]


@pytest.mark.parametrize("how", ["killed", "preempted"])
def test_the_end_of_one_ends_all(five, how):
    """SIGKILL of a worker; and SIGTERM to torchrun, after which the run is saved and can go on."""
    run = torchrun(five, "--save_minutes", "0")
    until_it_trains(run, five)
    started = time.monotonic()
    if how == "killed":
        os.kill(min(process for process, rank in processes_in(five).items() if rank == "1"), signal.SIGKILL)
    else:
        run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - started < 60
    if how == "killed":
        assert "another process of this run has ended" in out or "interrupted; " in out, out
        assert "Signal 9 (SIGKILL)" in out and "go on with --root runs --experiment_name run --resume" in out
    else:
        assert out.count("interrupted; ") == 1, out
        assert "within" in checkpoint_content(five / "runs/run")
    assert not processes_in(five)


def test_a_worker_s_own_error_is_shown(five):
    """The main process waits for one that does not find the metadata, as on a machine without them."""
    script = five / "one_of_two.sh"
    script.write_text(f"""exec {sys.executable} "$@" $([ "$RANK" = 1 ] && echo --metadata_root nowhere)\n""")
    run = torchrun(five, program=("--no_python", "bash", str(script), str(ROOT / "main.py")))
    started = time.monotonic()
    out, _ = run.communicate(timeout=60)
    assert run.returncode != 0 and "error: process 1: " in out and "nowhere" in out, out
    assert time.monotonic() - started < 60
