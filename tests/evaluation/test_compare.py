import pytest

from grpo_gym.evaluation.compare import compare_problems
from tests.evaluation.helpers import problem


def problems(outcomes, task="sums"):
    return [problem(number, outcome, task) for number, outcome in enumerate(outcomes)]


def test_pairing_sees_what_the_separate_intervals_do_not():
    """Ten of forty problems became right, none became wrong."""
    before = problems([[0]] * 20 + [[1]] * 20)
    after = problems([[1]] * 10 + [[0]] * 10 + [[1]] * 20)
    total = compare_problems(before, after).total
    assert (total.accuracy_a, total.accuracy_b, total.accuracy.mean) == (0.5, 0.75, 0.25)
    assert total.accuracy.low > 0
    assert total.accuracy.p < 0.01


def test_by_task():
    a = problems([[0], [0]], "sums") + problems([[1], [1]], "maze")
    b = problems([[1], [1]], "sums") + problems([[1], [1]], "maze")
    compared = compare_problems(a, b)
    assert {row.name: row.accuracy.mean for row in compared.by_task} == {"sums": 1.0, "maze": 0.0}
    assert compared.total.num_problems == 4


def test_different_numbers_of_samples_compare_by_their_rates():
    compared = compare_problems(problems([[1, 0, 0, 0]]), problems([[1, 0]]))
    assert compared.total.accuracy.mean == 0.25


def test_only_shared_problems_are_compared_and_the_rest_is_counted():
    compared = compare_problems(problems([[0], [1], [1]]), problems([[1], [1]]))
    assert (compared.total.num_problems, compared.only_in_a, compared.only_in_b) == (2, 1, 0)


def test_another_problem_under_the_same_number_is_refused():
    other = [problem(0, [1]), problem(1, [1], prompt="something else")]
    with pytest.raises(ValueError, match="do not match: 1 of 2 differ, the first is number 1 of sums"):
        compare_problems(problems([[0], [1]]), other)


def test_nothing_in_common_is_refused():
    with pytest.raises(ValueError, match=r"do not match: left has sums, right has maze"):
        compare_problems(problems([[0]]), problems([[0]], "maze"), "left", "right")
