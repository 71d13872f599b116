import itertools
import math
import random

import pytest

from grpo_gym.evaluation.statistics import (
    mean_interval,
    paired_bootstrap,
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


def test_paired_bootstrap_sees_a_small_steady_gain_and_no_gain():
    steady = paired_bootstrap([0.1, 0.12, 0.08, 0.1] * 20)
    assert steady.low > 0
    assert steady.p < 0.001
    none = paired_bootstrap([0.5, -0.5] * 40)
    assert none.low < 0 < none.high
    assert none.p > 0.5
    assert paired_bootstrap([0.0] * 9).p == 1.0


def test_paired_bootstrap_turns_its_sign_with_the_order():
    there, back = paired_bootstrap([0.2, 0.0, 0.4, 0.1]), paired_bootstrap([-0.2, 0.0, -0.4, -0.1])
    assert there.mean == -back.mean
    assert there.p == back.p


def test_paired_bootstrap_of_nothing():
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_bootstrap([])
