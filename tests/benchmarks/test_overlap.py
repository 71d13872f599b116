"""Arithmetic and files of `overlap`; its runs need a vf-vllm server."""

import json
from types import SimpleNamespace

import pytest

from benchmarks.harness import Result
from benchmarks.overlap import Phases, Round, Step, StepTimes, parse_args, summarize

APART = Phases(wall=5.0, rollout=2.0, train=2.5, sync=0.5)


def test_efficiency_is_the_longer_phase_over_the_overlapped_wall_time():
    hidden = Round(APART, Phases(wall=2.5, rollout=0.0, train=2.0, sync=0.5))
    assert hidden.efficiency == 1.0
    assert hidden.sum_over_wall == 4.5 / 2.5
    assert Round(APART, APART).efficiency == 0.5


def test_phases_are_medians_and_training_is_the_rest_of_the_wall_time():
    steps = [Step(wall=w, rollout=1.0, sync=0.25) for w in (2.0, 3.0, 9.0)]
    assert [step.train for step in steps] == [0.75, 1.75, 7.75]
    assert Phases.of(steps) == Phases(wall=3.0, rollout=1.0, train=1.75, sync=0.25)


def test_the_callback_takes_the_times_of_steps_after_the_warm_up():
    times = StepTimes(warmup=1)
    times.on_train_begin()
    for step in (1, 2, 3):
        times.on_step_end()
        times.on_log(
            None, SimpleNamespace(global_step=step), None, logs={"time/rollout": step, "time/sync": 0.0}
        )
        times.on_log(None, SimpleNamespace(global_step=step), None, logs={"eval_accuracy": 1.0})
    assert [step.rollout for step in times.steps] == [2, 3]
    assert all(step.wall >= 0 for step in times.steps)


def test_results_are_written(tmp_path):
    rounds = [Round(APART, Phases(wall=w, rollout=0.1, train=2.0, sync=0.5)) for w in (2.5, 2.6, 2.75)]
    summarize(Result("overlap", ["overlap"]), rounds, parse_args(["--folder", str(tmp_path)]))
    figures = json.loads((tmp_path / "overlap.json").read_text())["figures"]
    assert figures["overlap_efficiency"] == pytest.approx(2.5 / 2.6, rel=1e-3)
    assert figures["overlap_efficiency_min"] == pytest.approx(2.5 / 2.75, rel=1e-3)
    assert figures["seconds_train_apart"] == 2.5
    assert (tmp_path / "overlap.png").is_file()
