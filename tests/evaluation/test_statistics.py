import itertools
import math
import random

import pytest

from grpo_gym.evaluation.statistics import (
    mean_interval,
    paired_difference,
    pass_at_k,
    powers_of_two,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_many_samples_neither_overflows_nor_loses_digits():
    exact = 1 - math.comb(9_990, 1000) / math.comb(10_000, 1000)
    assert pass_at_k(10_000, 10, 1000) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 0, 5), (4, 0, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_has_no_answer(n, c, k):
    with pytest.raises(ValueError, match="sample"):
        pass_at_k(n, c, k)


def test_powers_of_two():
    assert powers_of_two(9) == [1, 2, 4, 8]
    assert powers_of_two(8)[-1] == 8
    assert powers_of_two(0) == []


def test_wilson_interval_of_a_textbook_example():
    """Newcombe 1998, table I: 81 of 263."""
    found = wilson_interval(81 / 263, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


def test_single_samples_give_the_plain_wilson_interval():
    assert share_interval([1] * 81 + [0] * 182, [1] * 263) == wilson_interval(81 / 263, 263)


def test_repeats_that_are_all_alike_are_worth_no_more_than_one():
    one = share_interval([1] * 20 + [0] * 30, [1] * 50)
    eight = share_interval([8] * 20 + [0] * 30, [8] * 50)
    assert (eight.low, eight.high) == pytest.approx((one.low, one.high))


def test_repeats_that_differ_narrow_the_interval():
    alike = share_interval([8] * 25 + [0] * 25, [8] * 50)
    mixed = share_interval([4] * 50, [8] * 50)
    assert mixed.high - mixed.low < 0.5 * (alike.high - alike.low)


def test_all_correct_still_has_a_width_that_counts_problems():
    found = share_interval([4] * 10, [4] * 10)
    assert found.mean == found.high == 1.0
    assert found.low == pytest.approx(wilson_interval(1.0, 10).low)


def test_problems_without_samples_do_not_count():
    assert share_interval([1, 0, 0], [1, 1, 0]) == share_interval([1, 0], [1, 1])
    with pytest.raises(ValueError, match="no samples"):
        share_interval([0], [0])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """40 problems of different difficulty x 4 repeats: 300 draws, nominal 285 hits."""
    draw = random.Random(0)
    hits = {"share": 0, "mean": 0}
    for _ in range(300):
        rates = [draw.betavariate(0.6, 0.9) for _ in range(40)]
        counts = [sum(draw.random() < rate for _ in range(4)) for rate in rates]
        share, mean = share_interval(counts, [4] * 40), mean_interval(counts, [4] * 40)
        hits["share"] += share.low <= 0.4 <= share.high
        hits["mean"] += mean.low <= 0.4 <= mean.high
    assert all(270 <= count <= 298 for count in hits.values()), hits


def test_mean_interval_contains_the_mean_and_repeats():
    found = mean_interval([0.5, 2.0, 1.0], [1, 2, 1])
    assert found.low <= found.mean == 0.875 <= found.high
    assert mean_interval([0.5, 2.0, 1.0], [1, 2, 1]) == found


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rates_have_wilsons_interval(value):
    for n in (1, 5, 100):
        found, wilson = mean_interval([4 * value] * n, [4] * n), wilson_interval(value, n)
        assert (found.mean, found.low, found.high) == pytest.approx((wilson.mean, wilson.low, wilson.high))


def test_equal_values_inside_or_beyond_the_rates_keep_a_width():
    inside = mean_interval([0.5] * 20, [1] * 20)
    assert 0.4 < inside.low < inside.mean == 0.5 < inside.high < 0.6
    beyond = mean_interval([1.2] * 20, [1] * 20)
    assert 1.0 < beyond.low < beyond.mean == beyond.high == pytest.approx(1.2)


def test_few_problems_widen_the_interval():
    """Nominal 95% of five normal values: plain percentiles hold the truth in 81% of draws."""
    draw = random.Random(0)
    estimates = [mean_interval([draw.gauss() for _ in range(5)], [1] * 5) for _ in range(300)]
    assert sum(e.low <= 0 <= e.high for e in estimates) > 0.88 * 300


def test_paired_difference_sees_a_small_steady_gain_and_no_gain():
    steady = paired_difference([0.1, 0.12, 0.08, 0.1] * 20)
    assert steady.low > 0
    assert steady.p < 0.001
    none = paired_difference([0.5, -0.5] * 40)
    assert none.low < 0 < none.high
    assert none.p > 0.5


@pytest.mark.parametrize("n", [1, 5, 6, 30])
def test_equal_results_have_p_1(n):
    found = paired_difference([0.0] * n)
    assert (found.mean, found.p) == (0.0, 1.0)
    assert found.low is None if n < 6 else found.low < 0 < found.high


@pytest.mark.parametrize("differences", [[1.0], [0.4] * 3, [1.0] * 5, [0.2, 0.1, 0.0, 0.4, 0.3]])
def test_too_few_problems_conclude_nothing(differences):
    found = paired_difference(differences)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.mean == pytest.approx(sum(differences) / len(differences))


def test_few_problems_that_differ_have_no_p_and_an_interval_around_0():
    found = paired_difference([1.0] * 5 + [0.0] * 95)
    assert (found.low, found.p) == (0.0, None)
    assert 0.05 < found.high < 0.15


def test_p_of_few_differences_is_exact():
    assert paired_difference([0.3] * 6).p == 2 / 2**6
    assert (
        paired_difference([1.0] * 7 + [-1.0] + [0.0] * 9).p == 2 * (8 + 1) / 2**8
    )  # the sign test of 7 of 8
    values = [0.3, -0.1, 0.25, 0.6, -0.45, 0.7, 0.05]
    signed = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=7)
    ]
    assert paired_difference(values).p == sum(abs(x) >= sum(values) - 1e-9 for x in signed) / 2**7


def test_p_of_many_differences_is_near_the_exact_one():
    """20 differences are counted out, 21 are drawn: 16 of one sign against 5 have p = 0.0266."""
    exact = 2 * sum(math.comb(21, k) for k in range(6)) / 2**21
    assert paired_difference([1.0] * 16 + [-1.0] * 5).p == pytest.approx(exact, abs=0.005)


def test_equal_differences_keep_a_width():
    found = paired_difference([1.0] * 8)
    assert 0.2 < found.low < 0.5
    assert found.high == 1.0


@pytest.mark.parametrize("n", [3, 5, 6, 10, 25])
def test_errors_are_as_rare_as_they_should_be(n):
    """No difference between A and B: 200 draws, p below 0.05 in 10 and 0 outside the interval in 10 are nominal."""
    draw = random.Random(n)
    found = [paired_difference([draw.random() - draw.random() for _ in range(n)], seed=i) for i in range(200)]
    significant = sum(d.p is not None and d.p <= 0.05 for d in found)
    outside = sum(d.low is not None and not d.low <= 0 <= d.high for d in found)
    assert significant <= (0 if n < 6 else 18)
    assert outside <= (0 if n < 6 else 20)


def test_paired_difference_turns_its_sign_with_the_order():
    gains = [0.2, 0.0, 0.4, 0.1, 0.3, 0.2, -0.1]
    there, back = paired_difference(gains), paired_difference([-gain for gain in gains])
    assert there.mean == -back.mean
    assert there.p == back.p


def test_paired_difference_of_nothing():
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_difference([])
