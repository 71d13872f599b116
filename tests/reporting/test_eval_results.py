"""Evaluations of a run, from their files and from its log."""

import json
import os

import pytest

from grpo_gym.evaluation.results import write_json
from grpo_gym.reporting.eval_results import evaluation_view, read_evaluations, read_gain
from grpo_gym.reporting.run_log import RunLog
from tests.reporting.synthetic_run import write_evaluation


def test_files_tell_accuracy_interval_and_tasks_by_step(tmp_path):
    write_evaluation(tmp_path, 10, {"legs": [True, True], "sums": [True, False]}, samples=2)
    write_evaluation(tmp_path, 0, {"legs": [False, False], "sums": [True, False]}, samples=2)
    first, last = read_evaluations(tmp_path, RunLog())
    assert (first.step, last.step) == (0, 10)
    assert (first.accuracy, last.accuracy) == (0.25, 0.75)
    assert last.interval[0] < 0.75 < last.interval[1]
    assert last.tasks == {"legs": 1.0, "sums": 0.5}
    assert last.task_problems == {"legs": 2, "sums": 2}
    assert set(last.pass_at) == {1, 2}


def test_the_view_puts_the_largest_gain_first_and_all_problems_last(tmp_path):
    write_evaluation(tmp_path, 0, {"legs": [False, True], "sums": [False, False], "lost": [True]})
    write_evaluation(tmp_path, 5, {"legs": [True, True], "sums": [True, True], "lost": [False]})
    view = evaluation_view(read_evaluations(tmp_path, RunLog()))
    assert [(row["name"], row["before"], row["after"]) for row in view["tasks"]] == [
        ("sums", 0.0, 1.0), ("legs", 0.5, 1.0), ("lost", 1.0, 0.0), ("all problems", 0.4, 0.8),
    ]  # fmt: skip
    (line,) = view["charts"][0]["lines"]
    assert (line["x"], line["y"]) == ([0, 5], [0.4, 0.8])
    assert line["low"][0] < 0.4 < line["high"][0]


def test_one_evaluation_has_no_before(tmp_path):
    write_evaluation(tmp_path, 5, {"legs": [True, False]})
    (row,) = evaluation_view(read_evaluations(tmp_path, RunLog()))["tasks"]
    assert (row["name"], row["before"], row["after"]) == ("legs", None, 0.5)


def test_the_log_fills_in_where_files_are_missing(tmp_path):
    write_evaluation(tmp_path, 5, {"legs": [True, True]})
    entries = [
        {
            "step": 0,
            "eval_accuracy": 0.2,
            "eval_accuracy_low": 0.1,
            "eval_accuracy_high": 0.4,
            "eval_accuracy/a": 0.2,
        },
        {"step": 5, "eval_accuracy": 0.9},
    ]
    first, last = read_evaluations(tmp_path, RunLog(entries=entries))
    assert (first.accuracy, first.interval, first.tasks) == (0.2, (0.1, 0.4), {"a": 0.2})
    assert last.accuracy == 1.0


def test_an_evaluation_that_failed_altogether_is_left_out(tmp_path):
    write_evaluation(tmp_path, 5, {"legs": [None, None]})
    assert read_evaluations(tmp_path, RunLog()) == []
    assert evaluation_view([]) == {"charts": [], "tasks": []}


def test_files_of_an_earlier_run_are_left_out_but_not_the_one_it_was_resumed_at(tmp_path):
    for step in (0, 10, 20):
        os.utime(write_evaluation(tmp_path, step, {"legs": [True]}), (100, 100))
    kept = read_evaluations(tmp_path, RunLog(first_step=10, started=500.0))
    assert [evaluation.step for evaluation in kept] == [0, 10]


def test_the_gain_is_read_only_where_it_is_of_these_evaluations(tmp_path):
    for step in (0, 5):
        write_evaluation(tmp_path, step, {"legs": [True]})
    evaluations = read_evaluations(tmp_path, RunLog())
    assert read_gain(tmp_path, evaluations) is None
    content = {"baseline": {"step": 0}, "final": {"step": 5}, "gain": {"accuracy": {"low": 0.1, "high": 0.3}}}
    path = write_json(tmp_path / "train_results.json", content)
    assert read_gain(tmp_path, evaluations) == (0.1, 0.3)
    assert read_gain(tmp_path, evaluations[:1]) is None
    content["gain"]["accuracy"] = {"low": None, "high": None}
    write_json(path, content)
    assert read_gain(tmp_path, evaluations) is None
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"train_results.json is not what"):
        read_gain(tmp_path, evaluations)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": "else"}), json.dumps({})])
def test_a_file_that_is_no_evaluation_is_named(tmp_path, content):
    (tmp_path / "eval_results").mkdir()
    (tmp_path / "eval_results" / "eval_step_3.json").write_text(content)
    with pytest.raises(ValueError, match=r"eval_step_3.json is not an evaluation of a training .*move it"):
        read_evaluations(tmp_path, RunLog())
