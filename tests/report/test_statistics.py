"""Averages, intervals and probabilities: values worked out by hand, and what must always hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from seqrl import scores
from seqrl.report.statistics import (
    aggregate,
    difference,
    improvement,
    interquartile_mean,
    over_seeds,
    plain_mean,
    probability_of_improvement,
    resample,
)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


# --- interquartile mean ------------------------------------------------------------------------


def test_interquartile_mean_by_hand() -> None:
    # Of 8 values 2 go at either end; of 10, floor(10 / 4) = 2; of 3, none.
    assert interquartile_mean(np.array([9.0, 1, 2, 3, 4, 5, 6, -50])) == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(np.arange(10.0)) == (2 + 3 + 4 + 5 + 6 + 7) / 6
    assert interquartile_mean(np.array([0.0, 0, 9])) == 3


def test_interquartile_mean_is_that_of_single_evaluations() -> None:
    for n in range(1, 14):
        values = random(n, n)
        assert interquartile_mean(values) == pytest.approx(scores.iqm(values))


def test_interquartile_mean_goes_along_with_scale_shift_and_order() -> None:
    x = random(0, 4, 11)
    assert interquartile_mean(3 * x + 2) == pytest.approx(3 * interquartile_mean(x) + 2)
    assert interquartile_mean(x[:, ::-1]) == pytest.approx(interquartile_mean(x))


# --- intervals over seeds ----------------------------------------------------------------------


def test_one_seed_has_no_interval_and_two_have_their_range() -> None:
    assert over_seeds([0.5])[:3] == (0.5, None, None)
    assert over_seeds([2.0, 1.0])[:3] == (1.5, 1.0, 2.0)
    assert over_seeds([2.0, 1.0]).over == "range of 2 seeds"


def test_more_seeds_have_the_bootstrap_interval_of_their_mean() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    e = over_seeds(values)
    assert (e.low, e.high) == scores.bootstrap(values)
    assert e.value == 3.75
    assert (e.seeds, e.over) == (4, "bootstrap over 4 seeds")


# --- aggregates --------------------------------------------------------------------------------


def test_aggregate_takes_every_run_of_every_row() -> None:
    # All 8 runs: 1..8; the middle half is 3, 4, 5, 6.
    strata = [column(1, 2, 3, 4), np.array([[5.0, 6], [7, 8]])]
    assert aggregate(strata).value == 4.5
    assert aggregate([column(0, 0, 0, 100)], plain_mean).value == 25


def test_resampling_stays_within_rows() -> None:
    # Mixed up, these two rows would give means from 0 to 100.
    strata = [column(0, 0, 0), column(100, 100, 100)]
    assert aggregate(strata, plain_mean)[:3] == (50, 50, 50)


def test_a_seed_is_drawn_with_all_of_its_columns() -> None:
    # Every seed has a mean of a half: whichever are drawn, so has the resample.
    together = aggregate([np.array([[0.0, 1], [1, 0], [0, 1]])], plain_mean)
    assert together[:3] == (0.5, 0.5, 0.5)
    drawn = resample([np.array([[1.0, 10], [2, 20], [3, 30]])])[0]
    assert drawn.shape == (scores.BOOTSTRAP_DRAWS, 3, 2)
    assert np.array_equal(10 * drawn[..., 0], drawn[..., 1])


def test_a_single_column_is_bootstrapped_like_one_score() -> None:
    values = random(3, 9)
    assert aggregate([values[:, None]], plain_mean)[1:3] == pytest.approx(scores.bootstrap(values))


def test_no_interval_where_a_row_has_a_single_seed() -> None:
    e = aggregate([column(1, 2, 3), column(5)])
    assert (e.low, e.high, e.seeds, e.over) == (None, None, 1, "1 seed somewhere, no interval")


def test_intervals_hold_the_value_and_stay_among_the_scores() -> None:
    for seed in range(5):
        strata = [random(seed, 5, 2), random(seed + 10, 4, 2) + 3]
        for statistic in (interquartile_mean, plain_mean):
            e = aggregate(strata, statistic)
            assert e.low is not None
            assert e.high is not None
            everything = np.concatenate([s.ravel() for s in strata])
            assert everything.min() <= e.low <= e.value <= e.high <= everything.max()
            assert e == aggregate(strata, statistic), "the same seed, the same interval"


# --- probability of improvement ----------------------------------------------------------------


def test_improvement_by_hand() -> None:
    # Pairs of (1, 2) and (0, 1): 1>0, 1=1, 2>0, 2>1: three wins and a tie of four.
    assert improvement(column(1, 2), column(0, 1)).tolist() == [3.5 / 4]
    x, y = [column(1, 2), column(5, 5)], [column(0, 1), column(5, 9)]
    assert probability_of_improvement(x, y).value == pytest.approx((3.5 / 4 + 1 / 4) / 2)


def test_improvement_is_what_its_definition_says() -> None:
    for seed in range(4):
        x = np.round(random(seed, 4, 3), 1)
        y = np.round(random(seed + 50, 6, 3), 1)
        for k in range(3):
            pairs = list(itertools.product(x[:, k], y[:, k]))
            wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
            assert improvement(x, y)[k] == pytest.approx(wins)


def test_improvement_and_its_converse_add_up_to_one() -> None:
    x, y = [random(1, 4, 2)], [random(2, 3, 2)]
    forth, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert forth.value + back.value == pytest.approx(1)
    assert probability_of_improvement(x, x).value == 0.5
    assert probability_of_improvement([x[0] + 100], y)[:3] == (1, 1, 1)
    # Only the order of scores matters.
    scaled = probability_of_improvement([np.exp(x[0])], [np.exp(y[0])])
    assert scaled.value == pytest.approx(forth.value)


def test_improvement_over_a_single_run_has_no_interval() -> None:
    e = probability_of_improvement([column(1, 2, 3)], [column(2)])
    assert (e.value, e.low) == (0.5, None)


# --- differences -------------------------------------------------------------------------------


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ a lot, by which is better little: pairing sees it.
    before = {0: 10.0, 1: 50.0, 2: 90.0, 9: 0.0}
    after = {0: 11.0, 1: 51.5, 2: 91.0, 8: 500.0}
    e = difference(before, after)
    assert e.value == pytest.approx(3.5 / 3)
    assert e.low is not None
    assert e.low >= 1
    assert (e.seeds, e.over) == (3, "3 paired seeds")


def test_differences_without_common_seeds() -> None:
    e = difference({0: 0.0, 1: 0.0}, {2: 5.0, 3: 5.0})
    assert e[:3] == (5, 5, 5)
    assert e.over == "2 and 2 unpaired seeds"
    assert difference({0: 1.0}, {0: 3.0})[:3] == (2, None, None)
    assert difference({0: 1.0, 1: 2.0}, {5: 3.0}).low is None


def test_a_difference_turned_round_has_the_other_sign() -> None:
    a = dict(enumerate(random(5, 5).tolist()))
    b = dict(enumerate(random(6, 5).tolist()))
    forth, back = difference(a, b), difference(b, a)
    assert back.value == pytest.approx(-forth.value)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))  # type: ignore[operator]
