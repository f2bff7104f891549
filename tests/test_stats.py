from __future__ import annotations

import numpy as np
import pytest

from edgecompile import stats


def test_wilson_matches_published_values() -> None:
    # Newcombe (1998), table I: 81/263 and 15/148, 95 % score interval without continuity correction.
    a = stats.wilson(81, 263)
    assert (round(a.low, 4), round(a.high, 4)) == (0.2553, 0.3662)
    b = stats.wilson(15, 148)
    assert (round(b.low, 4), round(b.high, 4)) == (0.0624, 0.1605)


@pytest.mark.parametrize(("successes", "total"), [(0, 20), (20, 20), (1, 1), (0, 1)])
def test_wilson_stays_a_proportion_at_the_ends(successes: int, total: int) -> None:
    found = stats.wilson(successes, total)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0


def test_wilson_refuses_no_samples() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stats.wilson(0, 0)


def test_percentile_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    truth = np.log(2.0)  # the median of the exponential distribution
    covered = sum(
        (found := stats.percentile(generator.exponential(size=200), 50, seed=k)).low <= truth <= found.high
        for k in range(40)
    )
    assert covered >= 33


def test_percentile_interval_is_wider_for_drifting_runs() -> None:
    generator = np.random.default_rng(2)
    noise = generator.normal(size=300)
    drift = np.cumsum(generator.normal(size=300)) / 5
    drift = drift / drift.std() * noise.std()
    free, slow = stats.percentile(10 + noise, 50), stats.percentile(10 + drift, 50)
    assert slow.high - slow.low > 1.5 * (free.high - free.low)


def test_same_data_same_interval() -> None:
    data = list(np.random.default_rng(3).exponential(size=100))
    assert stats.percentile(data, 90) == stats.percentile(data, 90)


def test_ratio_of_interleaved_rounds_cancels_what_slows_both() -> None:
    generator = np.random.default_rng(4)
    load = generator.uniform(1, 3, size=20)
    a = [list(2.0 * f * generator.normal(1, 0.01, 30)) for f in load]
    b = [list(1.0 * f * generator.normal(1, 0.01, 30)) for f in load]
    found = stats.percentile_ratio(a, b, 50)
    assert found.low <= 2.0 <= found.high or abs(found.value - 2) < 0.1
    assert found.high - found.low < 0.5


def test_ratio_needs_equal_rounds() -> None:
    with pytest.raises(ValueError, match="same positive number"):
        stats.percentile_ratio([[1.0]], [[1.0], [2.0]], 50)


def test_mean_of_constant_differences_has_no_width() -> None:
    found = stats.mean([0.5] * 10)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
