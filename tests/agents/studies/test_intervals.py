"""Statistics over seeds, against values that a hand can compute."""

from __future__ import annotations

import numpy as np
import pytest

from agents.studies.intervals import bootstrap_interval, interquartile_mean, summarise


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    assert interquartile_mean([-1e9, 2.0, 3.0, 7.0, 1e9]) == 4.0  # (2 + 3 + 7) / 3
    assert interquartile_mean([8.0, 1.0, 2.0, 4.0]) == 3.0  # (2 + 4) / 2
    assert interquartile_mean([1.0, 2.0, 6.0]) == 3.0  # a quarter of three is no whole value
    np.testing.assert_array_equal(
        interquartile_mean([[0.0, 9.0], [1.0, 9.0], [3.0, 9.0], [99.0, 9.0]]), [2.0, 9.0]
    )


def test_the_interval_of_two_seeds_spans_both() -> None:
    # Means of two draws from {2, 6}: 2, 4, 4 or 6, each with a quarter; 2.5 % lie inside the ends.
    assert bootstrap_interval([6.0, 2.0]) == (2.0, 6.0)


def test_the_interval_of_many_seeds_is_that_of_the_normal_distribution() -> None:
    values = np.arange(400.0)
    low, high = bootstrap_interval(values)
    # 1.96 standard errors: standard deviation of 0..399 (115.5) over sqrt(400)
    assert low == pytest.approx(199.5 - 1.96 * 115.5 / 20, abs=0.5)
    assert high == pytest.approx(199.5 + 1.96 * 115.5 / 20, abs=0.5)


def test_the_interval_of_the_interquartile_mean_is_deaf_to_an_outlier() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e6]
    assert bootstrap_interval(values)[1] > 1e5
    # Two of eight draws are left out at either end: of three outliers one stays; four are rare.
    assert bootstrap_interval(values, interquartile_mean)[1] <= (21 + 1e6) / 4


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval([5.0] * 3) == (5.0, 5.0)


def test_each_point_of_a_curve_has_its_interval() -> None:
    low, high = bootstrap_interval([[0.0, 10.0, 7.0], [1.0, 30.0, 7.0]])
    np.testing.assert_array_equal(low, [0.0, 10.0, 7.0])
    np.testing.assert_array_equal(high, [1.0, 30.0, 7.0])


def test_a_summary_has_no_interval_of_one_seed() -> None:
    summary = summarise([3.0])
    assert summary is not None
    assert (summary.n, summary.mean, summary.iqm) == (1, 3.0, 3.0)
    assert (summary.std, summary.mean_interval, summary.iqm_interval) == (None, None, None)
    assert summarise([]) is None


def test_a_summary_is_the_same_each_time() -> None:
    values = [10.0, 20.0, 30.0, 40.0, 1000.0]
    summary = summarise(values)
    assert summary == summarise(values)
    assert summary is not None
    assert (summary.mean, summary.iqm) == (220.0, 30.0)
    assert summary.std == pytest.approx(436.2, abs=0.1)
    assert summary.iqm_interval is not None
    assert summary.iqm_interval[0] < 30.0 < summary.iqm_interval[1]


def test_each_interval_of_a_summary_is_that_of_its_statistic() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e6]
    summary = summarise(values)
    assert summary is not None
    assert summary.mean_interval == bootstrap_interval(values)
    assert summary.iqm_interval == bootstrap_interval(values, interquartile_mean)
    assert summary.mean_interval != summary.iqm_interval
