"""Wilson's score interval: by SciPy and by hand, its coverage, and which figures have it."""

import numpy as np
import pytest
from scipy.stats import binomtest

from wsol.metrics.bootstrap import draw, interval, right_replicates
from wsol.metrics.proportions import wilson


@pytest.mark.parametrize("confidence", [80, 95, 99.9])
@pytest.mark.parametrize("right, images", [(0, 1), (1, 1), (0, 12), (12, 12), (7, 12), (232, 240), (1, 50_000)])
def test_wilson_is_scipys(right, images, confidence):
    expected = binomtest(right, images).proportion_ci(confidence / 100, method="wilson")
    found = wilson(100 * right / images, images, confidence)
    assert found == pytest.approx([100 * expected.low, 100 * expected.high], rel=1e-12, abs=1e-12)


def test_twelve_of_twelve_are_not_certain():
    """By hand: 12 of 12 give [12 / (12 + z^2), 1], z = 1.96, where all resamples of these images say 100 %."""
    assert wilson(100.0, 12) == pytest.approx([100 * 12 / (12 + 1.959964**2), 100.0], rel=1e-6)
    assert wilson(0.0, 12) == pytest.approx([0.0, 100 - 100 * 12 / (12 + 1.959964**2)], rel=1e-6)
    assert interval(right_replicates(np.ones(12, bool), draw(12, 100, seed=0))) == [100.0, 100.0]


@pytest.mark.parametrize("num_images", [12, 50, 1000])
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_coverage(num_images, share):
    """The true share lies in the interval of 95 % of the data sets: exactly, from the binomial distribution."""
    rights = np.random.default_rng(0).binomial(num_images, share, 2000)
    bounds = {right: wilson(100 * right / num_images, num_images) for right in set(rights.tolist())}
    covered = np.mean([bounds[right][0] <= 100 * share <= bounds[right][1] for right in rights.tolist()])
    assert 0.92 < covered < 0.985


@pytest.mark.parametrize("per_cent, images", [(101.0, 5), (-1.0, 5), (50.0, 0), (float("nan"), 5)])
def test_what_is_no_share_is_refused(per_cent, images):
    with pytest.raises(ValueError, match="not a share of images"):
        wilson(per_cent, images)
