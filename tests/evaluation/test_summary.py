import pytest

from grpo_gym.evaluation.summary import summarize, summarize_all
from tests.evaluation.helpers import problem, sample


def test_rates_of_two_problems():
    found = summarize([problem(0, [1, 1, 0, 0]), problem(1, [0, 0, 0, 0])])
    assert found["accuracy"]["mean"] == 0.25
    assert found["pass_at_k"]["1"]["mean"] == 0.25
    assert found["pass_at_k"]["2"]["mean"] == pytest.approx((5 / 6 + 0) / 2)
    assert found["pass_at_k"]["4"]["mean"] == 0.5
    assert found["spread"] == 0.5
    assert found["format_rate"] is None


def test_failed_samples_count_in_no_rate():
    found = problem(0, [1])
    found.samples.append(sample(False, error="generation failed: HTTP 500"))
    summary = summarize([found])
    assert summary["accuracy"]["mean"] == 1.0
    assert (summary["num_samples"], summary["num_failed"]) == (1, 1)
    assert list(summary["pass_at_k"]) == ["1"]


def test_partial_marks_for_format_are_not_in_format():
    found = problem(0, [])
    found.samples = [sample(True, fmt=1.0), sample(True, fmt=0.5)]
    assert summarize([found])["format_rate"]["mean"] == 0.5


def test_groups_by_task_and_category():
    summary = summarize_all(
        [
            problem(0, [1], "sums", "arithmetic"),
            problem(0, [0], "gcd", "arithmetic"),
            problem(0, [0], "maze", "games"),
        ]
    )
    assert summary["by_task"]["sums"]["accuracy"]["mean"] == 1.0
    assert summary["by_category"]["arithmetic"]["accuracy"]["mean"] == 0.5
    assert list(summary["by_category"]) == ["arithmetic", "games"]


def test_nothing_scored_has_no_rates():
    found = problem(0, [])
    found.samples = [sample(False, error="generation failed: x")]
    summary = summarize_all([found])
    assert summary["all"]["accuracy"] is None
    assert summary["all"]["num_failed"] == 1
