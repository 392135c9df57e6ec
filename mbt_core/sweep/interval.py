"""Student's t: how far the mean of a few values may be from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Quantile 0.975 of Student's t for 1 to 10 degrees of freedom."""


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean of two values or more, as of independent ones."""
    return t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_quantile(freedom: int) -> float:
    """Quantile 0.975 of Student's t; above 10 by its expansion (Abramowitz and Stegun 26.7.5), within 0.001."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
