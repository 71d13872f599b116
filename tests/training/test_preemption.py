"""A signal during training: the step is finished, a checkpoint saved, and the run goes on as if nothing had been."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import verifiers as vf
from datasets import Dataset

from grpo_gym import GRPOTrainer
from grpo_gym.training.preemption import EXIT_PREEMPTED, Preempted
from grpo_gym.training.resume import choose_checkpoint
from tests.training.test_trainer import config, weights


class Signalled:
    """A reward that sends this process a signal during one of the steps."""

    def __init__(self, number, call):
        self.number, self.call, self.calls = number, call, 0

    def __call__(self, completion, **kwargs):
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), self.number)
        return float(len(completion[-1]["content"]) % 5)


def make_trainer(folder, reward, **settings):
    questions = [f"{number}+1?" for number in range(16)]
    data = Dataset.from_dict({"question": questions, "answer": questions})
    env = vf.SingleTurnEnv(dataset=data, eval_dataset=data, rubric=vf.Rubric([reward]))
    args = config(folder, per_device_train_batch_size=8, num_generations=4, max_steps=4, **settings)
    return GRPOTrainer("tiny", env, args)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, number):
    whole = make_trainer(tmp_path / "whole", Signalled(number, call=0))
    whole.train()
    stopped = make_trainer(
        tmp_path / "stopped", Signalled(number, call=12)
    )  # in the second step of 8 rollouts
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match="stopped after step 2") as end:
        stopped.train(resume_from_checkpoint="auto")
    assert end.value.code == EXIT_PREEMPTED == 75
    assert [path.name for path in Path(stopped.args.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (Path(stopped.args.output_dir) / "model.safetensors").exists()
    assert signal.getsignal(number) is before
    again = make_trainer(tmp_path / "stopped", Signalled(number, call=0))
    again.train(resume_from_checkpoint="auto")
    expected, actual = weights(whole), weights(again)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_signal_during_the_last_step_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, Signalled(signal.SIGUSR1, call=4 * 8))
    trainer.train()
    assert trainer.state.global_step == 4
    assert (Path(trainer.args.output_dir) / "model.safetensors").is_file()


def test_only_complete_checkpoints_are_resumed_from(tmp_path):
    assert choose_checkpoint("auto", str(tmp_path)) is None
    assert choose_checkpoint(None, str(tmp_path)) is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/rollout_state.json").write_text("{}")
    assert choose_checkpoint(True, str(tmp_path)) == str(tmp_path / "checkpoint-100")
    (tmp_path / "checkpoint-100/rollout_state.json").unlink()  # as after a kill in the middle of saving
    assert choose_checkpoint("auto", str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert choose_checkpoint(str(tmp_path / "checkpoint-9"), "elsewhere") == str(tmp_path / "checkpoint-9")
    with pytest.raises(ValueError, match=r"checkpoint-100 has no rollout_state.json"):
        choose_checkpoint(str(tmp_path / "checkpoint-100"), "elsewhere")
    for step in (9, 10):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="has no checkpoint"):
        choose_checkpoint(True, str(tmp_path))
