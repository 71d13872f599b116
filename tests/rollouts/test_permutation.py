import itertools

import pytest

from grpo_gym.rollouts.permutation import permuted


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64, 65, 1000])
def test_every_number_comes_exactly_once(size):
    assert sorted(permuted(i, size, seed=3) for i in range(size)) == list(range(size))


def test_seeds_give_orders_of_their_own():
    orders = {tuple(permuted(i, 12, seed) for i in range(12)) for seed in range(200)}
    assert len(orders) == 200


def test_the_order_is_shuffled():
    """Rank correlation with the position, and the share of neighbours that stay neighbours, vanish."""
    size = 2000
    order = [permuted(i, size, seed=0) for i in range(size)]
    mean = (size - 1) / 2
    correlation = sum((i - mean) * (k - mean) for i, k in enumerate(order)) / (size * (size**2 - 1) / 12)
    assert abs(correlation) < 0.1
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 10


def test_each_place_is_equally_likely_for_each_number():
    """Chi-squared over 4000 seeds and 8 places: 49 degrees of freedom would exceed 110 once in a million."""
    seeds, size = 4000, 8
    counts = [[0] * size for _ in range(size)]
    for seed in range(seeds):
        for i in range(size):
            counts[i][permuted(i, size, seed)] += 1
    expected = seeds / size
    assert sum((count - expected) ** 2 / expected for row in counts for count in row) < 110


def test_a_huge_range_costs_nothing():
    size = 10**12
    assert len({permuted(i, size, 1) for i in range(100)}) == 100
    assert all(0 <= permuted(i, size, 1) < size for i in range(100))
