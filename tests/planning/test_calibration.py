"""Rates fitted to runs whose rates are known."""

import dataclasses

import numpy as np
import pytest

from grpo_gym.planning import costs, memory
from grpo_gym.planning.calibration import SETTINGS, fit, nonnegative_least_squares, save
from grpo_gym.planning.hardware import PhaseRates, Rates, load_rates
from grpo_gym.planning.measured_run import Measured
from grpo_gym.planning.splits import all_splits

TRUE = Rates(
    memory_bytes=16e9, reserved_bytes=7e8, decode=PhaseRates(2e-4, 3e10, 8e9, 4e9, overlaps=False),
    train=PhaseRates(5e-4, 4e10, float("inf"), 1e9, overlaps=False), optimizer_parameters=3e8,
    link_bytes=float("inf"), completion_seconds=1e-3, step_seconds=0.05, is_measured=True,
)  # fmt: skip


def ideal_run(setting):
    """What a machine of the true rates would measure."""
    load = setting.workload(50.0)
    prefill = costs.prefill_work(load, load.num_prompts).seconds(TRUE.train)
    rollout = costs.decode_work(load, load.completions).seconds(TRUE.decode) + prefill
    rollout += load.completions * TRUE.completion_seconds
    train = costs.train_work(load).seconds(TRUE.train)
    rest = load.trained_parameters / TRUE.optimizer_parameters + TRUE.step_seconds
    state = memory.persistent_bytes(load, "none", 1) + memory.generation_memory(load).total
    peak = TRUE.reserved_bytes + max(memory.trainer_memory(load, "none", 1).total, state)
    return Measured(rollout, train, rollout + train + rest, 50.0, 6e8, peak)


def test_the_rates_of_a_known_machine_are_found_and_predict_a_run_that_was_not_fitted():
    rates = fit([(setting, ideal_run(setting)) for setting in SETTINGS])
    assert rates.reserved_bytes == pytest.approx(TRUE.reserved_bytes)
    assert rates.optimizer_parameters == pytest.approx(TRUE.optimizer_parameters, rel=0.01)
    unseen = dataclasses.replace(
        SETTINGS[0], hidden_size=384, num_heads=6, completions=96, completion_tokens=40
    )
    (predicted,) = all_splits(unseen.workload(50.0), rates, 1, on_cpu=True)
    assert predicted.step_seconds == pytest.approx(ideal_run(unseen).step_seconds, rel=0.02)
    assert predicted.trainer_bytes == pytest.approx(ideal_run(unseen).peak_bytes, rel=0.01)


def test_rates_are_written_and_read(tmp_path):
    rates = fit([(setting, ideal_run(setting)) for setting in SETTINGS])
    save(rates, tmp_path / "rates.json", threads=1)
    assert load_rates(tmp_path / "rates.json") == rates


def test_a_file_without_rates_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no rates.*--calibrate"):
        load_rates(tmp_path / "none.json")


def test_coefficients_are_never_negative():
    rows = np.array([[1.0, 2.0], [2.0, 3.9], [3.0, 6.1]])
    assert (nonnegative_least_squares(rows - [[0.0, 5.0]]) >= 0).all()
    assert nonnegative_least_squares(np.diag([2.0, 4.0])) == pytest.approx([0.5, 0.25])
