"""The figures at the head of a report."""

import pytest

from grpo_gym.reporting.eval_results import Evaluation
from grpo_gym.reporting.facts import describe_run, duration
from grpo_gym.reporting.packed_completions import PackedCompletions
from grpo_gym.reporting.run_log import RunLog


def describe(tmp_path, entries=(), evaluations=(), config=None, gain=None, **log):
    run_log = RunLog(entries=list(entries), **log)
    return describe_run(tmp_path / "my_run", run_log, evaluations, PackedCompletions(), config or {}, gain)


def facts(description):
    return {fact.label: (fact.value, fact.detail) for fact in description.facts}


def test_gain_in_points(tmp_path):
    found = facts(describe(tmp_path, evaluations=[Evaluation(0, 0.125), Evaluation(40, 0.5)]))
    assert found["Held-out accuracy"] == ("12.5% → 50.0%", "+37.5 points")
    described = describe(tmp_path, evaluations=[Evaluation(0, 0.125), Evaluation(40, 0.5)], gain=(0.2, 0.55))
    assert facts(described)["Held-out accuracy"][1] == "+37.5 points (95%: +20.0 to +55.0)"
    assert facts(describe(tmp_path, evaluations=[Evaluation(0, 0.125)]))["Held-out accuracy"][0] == "12.5%"


def test_time_counts_the_steps_between_two_logs(tmp_path):
    entries = [{"step": s, "time/rollout": 2.0, "time/train": 1.0, "reward": 0.5} for s in (10, 20)]
    assert facts(describe(tmp_path, entries))["Time in steps"][0] == "1 min 0 s"


def test_an_unfinished_run_says_so(tmp_path):
    entries = [{"step": 3, "reward": 0.5}]
    assert "step 3 of 10" in describe(tmp_path, entries, max_steps=10).notices[0]
    assert describe(tmp_path, entries, max_steps=3).notices == []
    assert "No log" in describe(tmp_path).notices[0]


def test_the_name_is_the_runs_or_else_the_folders(tmp_path):
    assert describe(tmp_path).name == "my_run"
    assert describe(tmp_path, config={"training": {"run_name": "legs"}}).name == "legs"


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "5 s"), (125, "2 min 5 s"), (12_010, "3 h 20 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
