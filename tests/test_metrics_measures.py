"""The table of fidelity measures: every function can be loaded, and listing names loads no heavy library."""

import json
import pkgutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from wsol import metrics
from wsol.metrics.measures import COST, MEASURES

IMPORTS = """
import json, sys
import wsol.metrics, wsol.metrics.measures
names = dir(wsol.metrics)
print(json.dumps([name for name in ("torch", "numba", "cv2") if name in sys.modules]))
"""


def test_importing_the_table_or_the_package_is_cheap():
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_every_public_name_is_there():
    assert {"BoxAccuracy", "PixelAveragePrecision", "Fidelity", "MEASURES"} <= set(metrics.__all__)
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None


@pytest.mark.parametrize("name", MEASURES)
def test_figures_of_a_measure_are_those_of_its_function(name):
    """On a network that answers the image's mean."""

    class Mean(torch.nn.Module):
        def forward(self, images):
            return torch.stack([images.mean(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)

    measure, maps = MEASURES[name], torch.rand(2, 8, 9)
    function = pkgutil.resolve_name(measure.function)
    assert set(COST) == set(MEASURES) and COST[name] == measure.passes
    if measure.reads_confidence:
        probe = metrics.Probe(Mean(), torch.rand(2, 3, 8, 9), torch.zeros(2, dtype=torch.long))
        values = function(probe, maps)["softmax"]
        figures = values if isinstance(values, dict) else {name: values}
    else:
        figures = function(maps, torch.rand(2, 8, 9) < 0.5)
    assert set(figures) == set(measure.figures)
    assert all(of_figure.shape == (2,) for of_figure in figures.values())
