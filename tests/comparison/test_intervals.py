from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fisopt.comparison.intervals import difference_of, mean_of, ratio_of


def test_interval_is_students() -> None:
    values = [24.1, 25.3, 22.8, 26.0, 23.9]
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_of(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.text() == f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def test_one_value_tells_of_no_other() -> None:
    found = mean_of([3.0])
    assert (found.mean, found.low, found.high, found.count) == (3.0, None, None, 1)
    assert found.text() == "3.0"


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    drawn = [mean_of(list(rng.normal(5, 2, 8))) for _ in range(400)]
    covered = np.mean([low <= 5 <= high for x in drawn if (low := x.low) and (high := x.high)])
    assert 0.92 < covered < 0.98


def test_pairs_tell_more_than_their_means() -> None:
    clips = np.linspace(10, 40, 12)
    found = difference_of(list(clips + 0.5 + 0.01 * np.sin(clips)), list(clips))
    assert found.low is not None
    assert found.low > 0.4
    assert mean_of(list(clips)).low < clips.mean() - 3  # type: ignore[operator]


def test_ratio_is_that_of_each_pair() -> None:
    found = ratio_of([2.0, 8.0, 4.0], [1.0, 4.0, 2.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
