"""What is drawn of a log."""

import pytest

from grpo_gym.reporting.charts import thin, training_charts
from grpo_gym.reporting.run_log import RunLog


def charts(entries, **kwargs):
    return {chart["key"]: chart for chart in training_charts(RunLog(entries=entries), **kwargs)}


def test_the_reward_band_is_one_deviation_and_stays_within_what_occurs():
    entries = [{"step": 1, "reward": 0.2, "reward_std": 0.4}, {"step": 2, "reward": 0.5, "reward_std": 0.1}]
    (line,) = charts(entries)["reward"]["lines"]
    assert (line["y"], line["low"], line["high"]) == ([0.2, 0.5], [-0.2, 0.4], [0.6, 0.6])
    (line,) = charts(entries, reward_range=(0.0, 0.55))["reward"]["lines"]
    assert (line["low"], line["high"]) == ([0.0, 0.4], [0.55, 0.55])


def test_only_what_was_logged_is_drawn():
    assert set(charts([{"step": 1, "entropy": 1.0, "loss": 0.0}])) == {"entropy", "loss"}
    assert charts([]) == {}


def test_time_is_stacked():
    chart = charts([{"step": 1, "time/rollout": 2.0, "time/train": 1.0, "time/sync": 0.5}])["time"]
    assert chart["kind"] == "stack"
    assert {line["name"]: line["y"] for line in chart["lines"]} == {
        "rollouts": [2.0], "training": [1.0], "weight sync": [0.5],
    }  # fmt: skip


def test_scores_appear_when_there_are_several():
    one = {"step": 1, "rewards/correctness/mean": 0.5, "rewards/num_turns/mean": 1.0}
    assert "scores" not in charts([one])
    names = [line["name"] for line in charts([{**one, "rewards/format/mean": 1.0}])["scores"]["lines"]]
    assert names == ["correctness", "format"]
    names = [line["name"] for line in charts([{**one, "rewards/num_turns/mean": 2.5}])["scores"]["lines"]]
    assert names == ["correctness", "num_turns"]


def test_failures_are_drawn_by_kind():
    (line,) = charts([{"step": 1, "rollouts/failed": 2.0, "rollouts/failed/scoring_failed": 2.0}])["failed"][
        "lines"
    ]
    assert line["name"] == "scoring failed"


def test_failures_are_drawn_by_reward_too():
    entry = {
        "step": 1,
        "rollouts/failed/scoring_failed": 2.0,
        "rollouts/failed/scoring_failed/math_verify": 2.0,
    }
    lines = charts([entry])["failed"]["lines"]
    assert [line["name"] for line in lines] == ["scoring failed", "scoring failed: math_verify"]


def test_a_long_line_is_averaged_in_blocks_and_keeps_its_mean():
    points = [(step, float(step % 10)) for step in range(1, 10_001)]
    thinned = thin(points, 1000)
    assert len(thinned) == 1000
    assert thinned[-1][0] == 10_000
    assert sum(value for _, value in thinned) / 1000 == pytest.approx(4.5)
