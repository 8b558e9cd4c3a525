"""Fidelity against grad-cam's ROAD and confidence change, and against float64 loops written from the formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TinyNet, arguments, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange, DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.metrics.road import (
    NoisyLinearImputer,
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADMostRelevantFirst,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.ndimage import gaussian_filter
from torch import nn

import main as program
from config import parse_args
from inference import explain_prediction
from wsol import CamExtractor, dualize
from wsol.classifier import Output
from wsol.errors import InputError
from wsol.metrics.fidelity import (
    Fidelity,
    Probe,
    blur,
    confidence_change,
    deletion,
    energy_pointing_game,
    insertion,
    measure,
    pointing_game,
    road,
)
from wsol.metrics.imputation import linear_imputation
from wsol.metrics.measures import MEASURES

HEADS = ("softmax", "sigmoid")


def dual_network(dtype=torch.float64) -> nn.Module:
    """Two heads that differ and are sure of themselves, in training mode: the metrics must see to eval mode."""
    network = TinyNet(5)
    dual = dualize(network, target_layer="features.6")
    for head, scale in ((network.fc, 3.0), (dual.sigmoid_head, 2.0)):
        nn.init.normal_(head.weight, std=scale)
    with torch.no_grad():
        dual.train().set_trainable(["trunk"])(torch.randn(16, 3, 40, 40))  # BatchNorm statistics that matter
    return dual.to(dtype).train()


class Head(nn.Module):
    """One head of a dual network as an ordinary classifier, for grad-cam."""

    def __init__(self, dual, head):
        super().__init__()
        self.dual, self.place = dual.eval(), HEADS.index(head)

    def forward(self, images):
        return self.dual(images)[self.place]


def some_images(count: int = 3, size=(40, 56), dtype=torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, *size, dtype=dtype)


def some_maps(images: torch.Tensor) -> torch.Tensor:
    """Smooth maps stretched to [0, 1]; the last is zero in half its pixels, as a rectified map often is."""
    maps = F.interpolate(torch.rand(len(images), 1, 5, 7, dtype=images.dtype), images.shape[-2:], mode="bicubic")[:, 0]
    maps[-1] = (maps[-1] - maps[-1].median()).clamp(min=0)
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def confidence(dual, image: np.ndarray, class_id: int) -> dict[str, float]:
    """Softmax of each head's logits for one image, in NumPy."""
    dual.eval()
    with torch.no_grad():
        output = dual(torch.from_numpy(np.ascontiguousarray(image))[None])
        logits = [x[0].double().numpy() for x in output.by_head().values()]
    exponentials = [np.exp(x - x.max()) for x in logits]
    return {head: float(e[class_id] / e.sum()) for head, e in zip(HEADS, exponentials, strict=True)}


@pytest.fixture
def scene():
    dual, images = dual_network(), some_images()
    with torch.no_grad():
        class_ids = dual.eval()(images).logits.argmax(dim=1)
    return dual.train(), images, class_ids, some_maps(images)


# ------------------------------------------------------------------- the imputation


def by_gradcam(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return NoisyLinearImputer(noise=0)(image.float(), known.float())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 40), st.sampled_from([0.02, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 9))
def test_imputation_equals_gradcams_sparse_solve(height, width, share, smooth, seed):
    """Whatever is known: to float32's rounding of grad-cam's result in float64, to 1e-3 in float32."""
    torch.manual_seed(seed)
    scores = (
        torch.rand(height, width)
        if not smooth
        else F.interpolate(torch.rand(1, 1, 4, 4), (height, width), mode="bilinear")[0, 0]
    )
    known = scores <= torch.quantile(scores, share)
    image = torch.randn(3, height, width)
    expected = by_gradcam(image, known)
    exact = linear_imputation(image[None].double(), known[None])[0]
    assert (exact - expected).abs().max() < 1e-6
    assert (linear_imputation(image[None], known[None])[0] - expected).abs().max() < 1e-3
    assert torch.equal(exact[:, known], image[:, known].double())


@pytest.mark.parametrize("pattern", ["one corner", "one pixel", "checkerboard", "one unknown"])
def test_imputation_of_patterns(pattern):
    y, x = np.indices((48, 37))
    known = torch.from_numpy(
        {
            "one corner": (y == 0) & (x == 0),
            "one pixel": (y == 20) & (x == 9),
            "checkerboard": (x + y) % 2 == 0,
            "one unknown": (y != 47) | (x != 36),
        }[pattern]
    )
    image = torch.randn(3, 48, 37)
    found = linear_imputation(image[None].double(), known[None])[0]
    assert (found - by_gradcam(image, known)).abs().max() < 1e-6


def test_imputation_at_full_size_in_float32(monkeypatch):
    """A smooth map's upper half removed at 224 x 224, in few iterations."""
    import wsol.metrics.imputation as module

    calls, cycle = [], module._v_cycle
    monkeypatch.setattr(module, "_v_cycle", lambda levels, r: calls.append(r.shape[-1]) or cycle(levels, r))
    scores = F.interpolate(torch.rand(1, 1, 7, 7), (224, 224), mode="bilinear")[0]
    image = F.interpolate(torch.randn(1, 3, 40, 40), (224, 224), mode="bicubic")
    known = scores < scores.median()
    found = linear_imputation(image, known)[0]
    assert (found - by_gradcam(image[0], known[0])).abs().max() < 5e-4
    assert calls.count(224) <= 15


def test_imputation_without_anything_known_or_unknown():
    images = torch.randn(2, 3, 9, 12)
    known = torch.stack([torch.zeros(9, 12), torch.ones(9, 12)]).bool()
    found = linear_imputation(images, known)
    assert (found[0] == 0).all() and torch.equal(found[1], images[1])
    assert linear_imputation(images, known, noise=torch.ones_like(images))[0].unique().tolist() == [np.float32(0.01)]
    with pytest.raises(ValueError, match="need known pixels"):
        linear_imputation(images, known[:1])


def test_imputation_is_each_images_own():
    images, known = torch.randn(3, 3, 20, 31).double(), torch.rand(3, 20, 31) < 0.3
    together = linear_imputation(images, known)
    images[1, 0, 0, 0] = torch.nan
    known[1, 0, 0] = True
    beside_nan = linear_imputation(images, known)
    for i in (0, 2):
        assert torch.allclose(linear_imputation(images[i : i + 1], known[i : i + 1])[0], together[i], atol=1e-9, rtol=0)
        assert torch.isfinite(beside_nan[i]).all()


# ------------------------------------------------------------------- grad-cam's metrics


@pytest.mark.parametrize("head", HEADS)
def test_confidence_change_equals_gradcams(scene, head):
    """To 1e-6: grad-cam rounds confidences to float32."""
    dual, images, class_ids, maps = scene
    found = confidence_change(Probe(dual, images, class_ids, batch=2), maps)[head]
    before = Probe(dual, images, class_ids).before[head].numpy()
    targets = [ClassifierOutputSoftmaxTarget(int(k)) for k in class_ids]
    drop, increase, change = (
        metric()(images, maps.numpy(), targets, Head(dual, head))
        for metric in (DropInConfidence, IncreaseInConfidence, CamMultImageConfidenceChange)
    )
    assert (drop > 0.01).any()
    np.testing.assert_allclose(found["avg_drop"], drop / (before + 1e-7), atol=1e-6)
    np.testing.assert_allclose(found["inc_conf"], increase)
    np.testing.assert_allclose(found["avg_gain"], change.clip(0) / (1 - before + 1e-7), atol=1e-6 / (1 - before).min())


@pytest.mark.parametrize("head", HEADS)
def test_road_equals_gradcams(scene, head, monkeypatch):
    """The same noise given, ROADCombined and its halves agree to 1e-6 (grad-cam rounds to float32).

    grad-cam solves in float32 tensors, so the images are exact in float32. Its matrix is singular where no pixel is
    known, as with the third map's zeros; there its result is undefined, ours is 0.
    """
    dual, images, class_ids, maps = scene
    images, maps, class_ids = images[:2].float(), maps[:2].float(), class_ids[:2]
    noise = torch.randn(images.shape)
    solve = NoisyLinearImputer.__call__

    def impute(imputer, image, mask):
        position = next(i for i, known in enumerate(images) if torch.equal(known, image.float()))
        smooth = solve(NoisyLinearImputer(noise=0), image.float(), mask)
        return (smooth + imputer.noise * noise[position] * (mask == 0)).double()

    monkeypatch.setattr(NoisyLinearImputer, "__call__", impute)
    targets = [ClassifierOutputSoftmaxTarget(int(k)) for k in class_ids]
    found = road(Probe(dual, images.double(), class_ids, batch=5, noise=noise.double()), maps.double())[head]
    arguments_ = images.double(), maps.numpy(), targets, Head(dual, head)
    np.testing.assert_allclose(found, ROADCombined()(*arguments_), atol=1e-6)
    least, most = (
        np.mean([metric(p)(*arguments_) for p in range(10, 100, 10)], axis=0)
        for metric in (ROADLeastRelevantFirst, ROADMostRelevantFirst)
    )
    np.testing.assert_allclose(found, (least - most) / 2, atol=1e-6)
    assert (found.abs() > 1e-3).any()


def test_road_in_float32_is_close(scene):
    dual, images, class_ids, maps = scene
    noise = torch.randn_like(images)
    exact = road(Probe(dual, images, class_ids, noise=noise), maps)
    rounded = road(Probe(dual.float(), images.float(), class_ids, noise=noise.float()), maps.float())
    for head in HEADS:
        np.testing.assert_allclose(rounded[head], exact[head], atol=2e-4)


# ------------------------------------------------------------------- float64 loops from the formulas


def loop_area(dual, start: np.ndarray, finish: np.ndarray, scoremap: np.ndarray, class_id: int, head: str) -> float:
    """Petsiuk's game one pixel at a time: np.trapezoid over 21 scores."""
    order = np.argsort(-scoremap.ravel(), kind="stable")
    image, scores, changed = start.copy().reshape(3, -1), [], 0
    for step in range(21):
        while changed < step * order.size // 20:
            image[:, order[changed]] = finish.reshape(3, -1)[:, order[changed]]
            changed += 1
        scores.append(confidence(dual, image.reshape(start.shape), class_id)[head])
    return float(np.trapezoid(scores, dx=1 / 20))


@pytest.mark.parametrize("size", [(40, 56), (33, 27)])
def test_deletion_and_insertion_equal_the_loop(size):
    dual, images = dual_network(), some_images(2, size)
    maps, class_ids = some_maps(images), torch.tensor([3, 0])
    probe = Probe(dual, images, class_ids, batch=7)
    deleted, inserted, blurred = deletion(probe, maps), insertion(probe, maps), blur(images)
    for i in range(2):
        for head in HEADS:
            image, rest = images[i].numpy(), (maps[i].numpy(), int(class_ids[i]), head)
            assert deleted[head][i] == pytest.approx(loop_area(dual, image, np.zeros_like(image), *rest), abs=1e-9)
            assert inserted[head][i] == pytest.approx(loop_area(dual, blurred[i].numpy(), image, *rest), abs=1e-9)


def test_blur_is_that_of_rises_code():
    """scipy's Gaussian filter on an impulse in 11 x 11 pixels, as a convolution with zeros around the image."""
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(impulse, 5))
    images = some_images(2, (21, 30))
    expected = F.conv2d(images.flatten(0, 1)[:, None], kernel[None, None], padding=5).view(images.shape)
    assert torch.allclose(blur(images), expected, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 1])
def test_averages_equal_the_formulas(scene, shift):
    """For the predicted classes, whose confidence mostly falls, and for others, whose confidence can rise."""
    dual, images, class_ids, maps = scene
    class_ids, seen = (class_ids + shift) % 5, []
    metric = Fidelity(["confidence"], HEADS)
    probe = Probe(dual, images, class_ids)
    metric.update(measure(probe, maps, ["confidence"]))
    for head in HEADS:
        pairs = [
            (confidence(dual, x.numpy(), k)[head], confidence(dual, (x * m).numpy(), k)[head])
            for x, m, k in zip(images, maps, class_ids.tolist(), strict=True)
        ]
        expected = {
            "avg_drop": 100 * np.mean([max(0, y - o) / (y + 1e-7) for y, o in pairs]),
            "inc_conf": 100 * np.mean([o > y for y, o in pairs]),
            "avg_gain": 100 * np.mean([max(0, o - y) / (1 - y + 1e-7) for y, o in pairs]),
        }
        assert metric.compute()[head] == pytest.approx(expected, abs=1e-6)
        seen.append(expected["avg_gain" if shift else "avg_drop"])
    assert max(seen) > 1


def test_pointing_games():
    """Row and column are not mixed up: the object is the right part of a wide image."""
    maps = torch.zeros(4, 6, 10)
    inside = torch.zeros(4, 6, 10, dtype=torch.bool)
    inside[:, 1:3, 7:10] = True
    maps[0, 2, 8], maps[0, 5, 0] = 1.0, 0.25  # on the object, and a little elsewhere
    maps[1, 5, 2] = 1.0  # (2, 5) would be no hit, either, but (1, 7) ...
    maps[2, 1, 7], maps[2, 0, 9] = 0.7, 0.7  # a tie: the first counts, which is outside
    inside[3] = True  # everywhere, but the map is zero
    assert pointing_game(maps, inside).tolist() == [1, 0, 0, 0]
    assert energy_pointing_game(maps, inside).tolist() == pytest.approx([0.8, 0, 0.5, 0])
    for i in range(200):
        scoremap, truth = np.random.rand(6, 10), np.random.rand(6, 10) < 0.4
        y, x = np.unravel_index(scoremap.argmax(), scoremap.shape)
        arrays = torch.from_numpy(scoremap)[None], torch.from_numpy(truth)[None]
        assert pointing_game(*arrays).item() == truth[y, x], i
        assert energy_pointing_game(*arrays).item() == pytest.approx(scoremap[truth].sum() / scoremap.sum())
    with pytest.raises(ValueError, match="type bool"):
        pointing_game(maps, inside.float())


# ------------------------------------------------------------------- edges


def test_chunks_and_the_output_at_hand_change_nothing(scene):
    dual, images, class_ids, maps = scene
    noise = torch.randn_like(images)
    whole = measure(Probe(dual, images, class_ids, batch=1000, noise=noise), maps, MEASURES)
    assert dual.training
    with torch.no_grad():
        output = dual.eval()(images)
    parts = measure(Probe(dual, images, class_ids, batch=1, noise=noise, output=output), maps, MEASURES)
    assert (
        set(whole)
        == set(parts)
        == {
            f"{head}/{key}"
            for head in HEADS
            for measure_ in MEASURES.values()
            if measure_.reads_confidence
            for key in measure_.figures
        }
    )
    for name in whole:
        assert torch.allclose(whole[name], parts[name], atol=1e-9), name


def test_at_most_a_batch_of_images_and_no_graph(scene):
    dual, images, class_ids, maps = scene
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append((len(x), torch.is_grad_enabled(), self.training))
            return dual.network.fc(x.mean(dim=(2, 3)).repeat(1, 6)[:, :16])

    figures = measure(Probe(Watch(), images, class_ids, batch=2), maps, MEASURES)
    assert max(count for count, *_ in seen) == 2 and {(grad, mode) for _, grad, mode in seen} == {(False, False)}
    assert all(name.startswith("softmax/") and not values.requires_grad for name, values in figures.items())


def test_a_map_of_zeros_is_measured(scene):
    """Deletion and insertion go on in raster order, ROAD sees no difference between the two orders."""
    dual, images, class_ids, _ = scene
    maps = torch.zeros(3, 40, 56, dtype=torch.float64)
    figures = measure(Probe(dual, images, class_ids), maps, MEASURES)
    blank = confidence(dual, np.zeros((3, 40, 56)), int(class_ids[0]))["softmax"]
    before = confidence(dual, images[0].numpy(), int(class_ids[0]))["softmax"]
    assert figures["softmax/avg_drop"][0] == pytest.approx(max(0, before - blank) / (before + 1e-7))
    assert (figures["softmax/road"] == 0).all()
    assert all(values.isfinite().all() for values in figures.values())


def test_a_confidence_of_exactly_one():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.stack([torch.full_like(x[:, 0, 0, 0], 1000.0), x.mean(dim=(1, 2, 3))], dim=1)

    images = some_images(2)
    found = confidence_change(Probe(Sure(), images, torch.zeros(2, dtype=torch.long)), some_maps(images))["softmax"]
    assert {key: values.tolist() for key, values in found.items()} == {
        "avg_drop": [0, 0],
        "inc_conf": [0, 0],
        "avg_gain": [0, 0],
    }


def test_a_network_that_answers_nan_is_counted_and_left_out(scene):
    dual, images, class_ids, maps = scene

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.dual = dual

        def forward(self, x):
            output = self.dual(x)
            bright = x.amax(dim=(1, 2, 3)) > 50
            return Output(output.logits, output.sigmoid_logits.masked_fill(bright[:, None], torch.nan))

    images[1, 0, 3, 3], maps[1, 3, 3] = 100.0, 1.0  # bright with and without the map
    metric = Fidelity(["confidence", "road"], HEADS)
    metric.update(measure(Probe(Broken(), images, class_ids), maps, ["confidence", "road"]))
    found = metric.compute()
    assert found["sigmoid"]["num_nonfinite"] == 1 and "num_nonfinite" not in found["softmax"]
    rest = Fidelity(["confidence"], HEADS)
    keep = torch.tensor([0, 2])
    rest.update(measure(Probe(dual, images[keep], class_ids[keep]), maps[keep], ["confidence"]))
    for key, value in rest.compute()["sigmoid"].items():
        assert found["sigmoid"][key] == pytest.approx(value, abs=1e-6)
    nothing = Fidelity(["insertion"])
    nothing.update({"softmax/insertion": torch.tensor([torch.nan])})
    assert nothing.compute() == {"softmax": {"num_nonfinite": 1}}


def test_merged_shards_equal_one_to_the_last_digit():
    names = ("softmax/road", "pointing", "energy_pointing")
    figures = {name: torch.rand(97, dtype=torch.float64) * 2 - 1 for name in names}
    whole = Fidelity(["road", "pointing"])
    whole.update(figures)
    shards = []
    for part in (slice(40, 97), slice(0, 3), slice(3, 40)):
        shards.append(Fidelity(["road", "pointing"]))
        for i in range(97)[part]:
            shards[-1].update({name: values[i : i + 1] for name, values in figures.items()})
    restored = Fidelity(["road", "pointing"])
    restored.load_state({name: sum(shard.state()[name] for shard in shards) for name in shards[0].state()})
    merged = shards[0].merge(shards[1]).merge(shards[2])
    assert whole.compute() == merged.compute() == restored.compute()
    assert whole.compute()["softmax"]["road"] == pytest.approx(figures["softmax/road"].mean().item(), abs=1e-9)
    assert Fidelity(["road"]).compute() == {"softmax": {}}
    with pytest.raises(ValueError, match="other settings"):
        whole.merge(Fidelity(["road"]))


def test_errors_name_what_is_wrong(scene):
    dual, images, class_ids, maps = scene
    probe = Probe(dual, images, class_ids)
    for measured in (confidence_change, deletion, insertion, road):
        with pytest.raises(ValueError, match="must have the images' size"):
            measured(probe, maps[:, :-1])
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            measured(probe, maps * torch.nan)
    with pytest.raises(ValueError, match="need class ids"):
        Probe(dual, images, class_ids[:2])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        Probe(dual, images, class_ids, batch=0)
    with pytest.raises(ValueError, match="unknown fidelity measure"):
        Fidelity(["confidance"])
    with pytest.raises(ValueError, match="this metric has no"):
        Fidelity(["road"]).update({"sigmoid/road": torch.zeros(1)})


# ------------------------------------------------------------------- the real command


def test_maps_of_the_prediction_reuse_those_of_the_label():
    dual, images = dual_network(), some_images(4)
    with CamExtractor(dual, ["cam", "layercam"], heads=["softmax", "sigmoid_clamped"]) as extract:
        expected = extract(images)
        labels = extract.output.logits.argmax(dim=1)
        labels[[1, 3]] = (labels[[1, 3]] + 1) % 5
        of_labels = extract(images, labels)
        found = explain_prediction(extract, images, labels, of_labels)
    for row, maps in found.items():
        assert torch.allclose(maps, expected[row], atol=1e-9)
        assert not torch.allclose(of_labels[row][1], maps[1])


def test_fidelity_in_a_run(tmp_path, capsys):
    write_dataset(tmp_path, "Shapes", images=2)
    results = program.main(
        arguments(
            tmp_path,
            "--methods",
            "gradcam,layercam",
            "--heads",
            "softmax,sigmoid_clamped",
            "--crop_size",
            "32",
            "--fidelity",
            "all",
        )
    )
    assert len(results["rows"]) == 4
    for row in results["rows"]:
        assert set(row["fidelity"]) == {*HEADS, "pointing", "energy_pointing"}
        for head in HEADS:
            figures = row["fidelity"][head]
            assert set(figures) == {
                *("avg_drop", "inc_conf", "avg_gain", "insertion", "deletion", "road"),
                *("insertion_curve", "deletion_curve"),
            }
            assert all(0 <= figures[key] <= 100 for key in ("avg_drop", "inc_conf", "avg_gain"))
            assert 0 < figures["insertion"] < 1 and 0 < figures["deletion"] < 1 and -1 < figures["road"] < 1
        assert 0 <= row["fidelity"]["pointing"] <= 100 and 0 < row["fidelity"]["energy_pointing"] < 100
    assert results["seconds"]["fidelity"] > 0 and "ROAD ↑" in capsys.readouterr().out
    header = (tmp_path / "runs/run/results.csv").read_text().splitlines()[0].split(",")
    assert {"fidelity_softmax_avg_drop", "fidelity_sigmoid_road", "fidelity_pointing"} <= set(header)
    evaluate = ["--root", str(tmp_path / "runs"), "--experiment_name", "run", "--eval_only"]
    again = program.main([*evaluate, "--batch_size", "12", "--fidelity", "road,pointing", "--cam_target", "pred"])
    for old, new in zip(results["rows"], again["rows"], strict=True):
        assert set(new["fidelity"]["softmax"]) == {"road"}  # the same, whatever the batch and the maps evaluated
        assert new["fidelity"]["softmax"]["road"] == pytest.approx(old["fidelity"]["softmax"]["road"], abs=1e-5)
        assert new["fidelity"]["pointing"] == old["fidelity"]["pointing"]


def test_fidelity_without_a_branch_and_with_masks_only(tmp_path):
    write_dataset(tmp_path, "Shapes", form="masks", images=1)
    results = program.main(
        arguments(
            tmp_path,
            "--methods",
            "gradcam",
            "--model_structure",
            "vanilla",
            "--epochs",
            "1",
            "--fidelity",
            "confidence,pointing",
        )
    )
    (row,) = results["rows"]
    assert set(row["fidelity"]) == {"softmax", "pointing", "energy_pointing"}
    assert set(row["fidelity"]["softmax"]) == {"avg_drop", "inc_conf", "avg_gain"}


def test_fidelity_is_counted_and_checked_before_the_run(shapes, capsys):
    assert [parse_args(words).fidelity for words in ([], ["--fidelity", "none"], ["--fidelity", "road, pointing"])] == [
        [],
        [],
        ["road", "pointing"],
    ]
    program.main(arguments(shapes, "--methods", "cam", "--fidelity", "all", "--dry_run"))
    assert "fidelity: 2,052 forward passes (57 for each of 3 rows and 12 images)" in capsys.readouterr().out
    with pytest.raises(InputError, match="--fidelity: unknown name 'rode'; did you mean 'road'"):
        program.main(arguments(shapes, "--fidelity", "rode"))
