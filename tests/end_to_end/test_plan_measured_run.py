"""The short training run that rates are fitted to, as two real processes."""

from grpo_gym.planning import memory
from grpo_gym.planning.measured_run import RunSetting, measure


def test_a_run_of_two_processes_reports_its_seconds_and_memory():
    setting = RunSetting(64, 128, 2, 2, 1, 1024, 8, 4, 5, 8, steps=2, processes=2)
    measured = measure(setting)
    assert 0 < measured.rollout_seconds < measured.step_seconds
    assert 0 < measured.train_seconds < measured.step_seconds
    assert measured.prompt_tokens > 5
    counted = memory.trainer_memory(setting.workload(measured.prompt_tokens), "none", 1).total
    assert measured.peak_bytes - measured.baseline_bytes > counted
