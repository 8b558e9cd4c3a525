"""How far to trust a proportion, such as the share of images that are right: Wilson's score interval."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(per_cent: float, num_images: int, confidence: float = 95.0) -> list[float]:
    """The score interval [low, high] of a share of right images, in per cent.

    It has all true shares from which the measured one lies at most z standard deviations away (Wilson, "Probable
    Inference, the Law of Succession, and Statistical Inference", 1927). It is not symmetric about the measured share:
    12 right of 12 give [75.8, 100]. Raises ValueError for less than one image or a share outside [0, 100].
    """
    if num_images < 1 or not 0 <= per_cent <= 100:
        raise ValueError(f"{per_cent} % of {num_images} images is not a share of images")
    share = per_cent / 100
    z = NormalDist().inv_cdf(0.5 + confidence / 200)
    shrunk = share + z**2 / (2 * num_images)
    half_width = z * math.sqrt(share * (1 - share) / num_images + (z / (2 * num_images)) ** 2)
    low, high = ((shrunk + side * half_width) / (1 + z**2 / num_images) for side in (-1, 1))
    # Rounding may lead past a share of 0 or 1, which is its own bound.
    return [100 * max(min(low, share), 0.0), 100 * min(max(high, share), 1.0)]
