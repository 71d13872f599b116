"""`end_to_end` at its smallest: both programs train on the same prompts with the same rewards."""

import json

import pytest

from benchmarks.end_to_end import Run, env_reward, main, questions, score


def test_a_run_of_both_programs_writes_its_result(tmp_path):
    main(
        [
            "--rounds", "1", "--steps", "2", "--completions", "8", "--group-size", "4", "--threads", "1",
            "--max-completion-length", "8", "--folder", str(tmp_path),
        ]
    )  # fmt: skip
    record = json.loads((tmp_path / "end_to_end.json").read_text())
    figures, details = record["figures"], record["details"]
    assert figures["speed_ratio"] == pytest.approx(1 / figures["seconds_per_step_over_trl"], rel=1e-2)
    for name in ("ours", "trl"):
        (run,) = details[name]
        assert len(run["seconds"]) == len(run["rewards"]) == 2
        assert 0 < figures[f"mean_completion_tokens_{name}"] <= 8


def test_seconds_and_rewards_of_a_run():
    run = Run(seconds=[3.0, 4.0, 6.0], rewards=[0.1, 0.2, 0.6])
    assert run.step_seconds == [1.0, 2.0]
    assert run.seconds_per_step == 1.5
    assert run.reward_before(6.0) == pytest.approx(0.3)
    assert run.reward_before(4.5) == pytest.approx(0.15)
    assert run.reward_before(1.0) == pytest.approx(0.1)  # no step had ended: the first one


def test_rewards_differ_between_completions_so_that_no_group_is_skipped():
    assert score("<answer>4</answer>", "4") > 1
    assert 0 < score("abc 12", "4") < 0.1
    message = [{"role": "assistant", "content": "<answer>4</answer>"}]
    assert env_reward(message, "4") == score("<answer>4</answer>", "4")


def test_questions_depend_on_the_seed_alone():
    assert questions(1, 4)[:] == questions(1, 4)[:] != questions(2, 4)[:]
