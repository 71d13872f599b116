"""Refilled steps: the number of steps, the epoch count and the learning-rate schedule do not depend on them."""

import pytest
import verifiers as vf

from tests.conftest import echo_dataset
from tests.training.test_trainer import logs, train


def parity_env(count):
    """Questions whose answer is odd teach nothing: every completion has reward 0."""

    def length(completion, answer):
        return (int(answer) % 2 == 0) * len(str(completion[-1]["content"])) / 100

    return vf.SingleTurnEnv(dataset=echo_dataset(count), rubric=vf.Rubric([length]))


def test_schedule_and_epochs_stay_right_when_groups_are_refilled(tmp_path):
    trainer = train(
        tmp_path, parity_env(16), filter_zero_variance=True, max_refill=4.0, max_steps=-1, num_train_epochs=2,
        per_device_train_batch_size=16, num_generations=4, max_completion_length=8, learning_rate=1e-3,
        lr_scheduler_type="linear", eval_num_problems=2,
    )  # fmt: skip
    entries = logs(trainer)
    # 16 prompts, 4 groups per step: 4 steps an epoch, however many prompts each of them drew.
    assert trainer.state.global_step == trainer.state.max_steps == 8
    assert trainer.state.epoch == 2.0
    assert [entry["learning_rate"] for entry in entries] == pytest.approx(
        [1e-3 * (8 - step) / 8 for step in range(8)]
    )
    assert all(len(trainer.last_groups.groups) == 4 for _ in entries)
    assert all(group.has_spread for group in trainer.last_groups.groups)
    assert any(entry["informative_fraction"] < 1 for entry in entries)
    drawn = sum(entry["rollouts/groups_generated"] for entry in entries)
    assert entries[-1]["prompts/epochs"] == drawn / 16 > 2


def test_a_run_in_which_nothing_is_informative_ends(tmp_path):
    def nothing(completion, answer):
        return 0.0

    env = vf.SingleTurnEnv(dataset=echo_dataset(8), rubric=vf.Rubric([nothing]))
    trainer = train(
        tmp_path, env, filter_zero_variance=True, max_refill=1.0, max_steps=2, per_device_train_batch_size=8,
        num_generations=4, max_completion_length=4, eval_num_problems=2,
    )  # fmt: skip
    assert [entry["informative_fraction"] for entry in logs(trainer)] == [0.0, 0.0]
    assert [entry["rollouts/groups_generated"] for entry in logs(trainer)] == [4.0, 4.0]
