"""Means with their 95 % intervals, over clips that were made in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and where it lies with 95 % confidence.

    Attributes:
        mean: the mean.
        low: lower end; None for one value, which tells of no other.
        high: upper end.
        count: how many values there are.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def text(self, form: str = ".1f") -> str:
        """The mean, and in brackets its interval."""
        if self.low is None or self.high is None:
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of one value a clip, with Student's interval.

    Args:
        values: one or more, all finite.
    """
    from scipy import stats

    found = np.asarray(values, dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, None, None, len(found))
    error = float(found.std(ddof=1)) / math.sqrt(len(found))
    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1))
    return Interval(mean, mean - reach, mean + reach, len(found))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The geometric mean of ratios of pairs, with its interval.

    Args:
        above: one positive value a clip.
        below: those they are divided by, clip by clip.
    """
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    found = mean_of(logs)
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Interval(math.exp(found.mean), low, high, found.count)


def difference_of(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean difference of pairs, ours less theirs, with its interval."""
    return mean_of([a - b for a, b in zip(ours, theirs, strict=True)])
