"""Training on conversations: what the policy did not write moves no weight, and both sides agree on what it did."""

import dataclasses

import pytest
import reasoning_gym
import torch
import verifiers as vf
from datasets import Dataset
from reasoning_gym.utils import SYSTEM_PROMPTS

from grpo_gym import GRPOTrainer
from tests.conftest import echo_dataset
from tests.training.test_trainer import ANIMALS, config, logs


class SecondTry(vf.MultiTurnEnv):
    """Questions about legs; a wrong answer gets one more turn."""

    async def env_response(self, messages, state, **kwargs):
        return [vf.UserMessage(content="That is wrong. Try again.")]

    @vf.stop
    async def is_right(self, state):
        if not state["trajectory"]:
            return False
        given = self.parser.parse_answer(state["trajectory"][-1]["completion"])
        return given == state["answer"]


def legs(count, seed):
    entries = reasoning_gym.create_dataset("leg_counting", seed=seed, size=count, **ANIMALS)
    return Dataset.from_list([{"question": e["question"], "answer": e["answer"]} for e in entries])


def second_try(max_turns=2):
    parser = vf.XMLParser(["answer"])

    def correct(completion, answer):
        return float(parser.parse_answer(completion[-1:]) == answer)

    return SecondTry(
        max_turns=max_turns,
        dataset=legs(64, seed=1),
        eval_dataset=legs(16, seed=1000),
        system_prompt=SYSTEM_PROMPTS["default"],
        parser=parser,
        rubric=vf.Rubric([correct], parser=parser),
    )


def test_sampler_and_trainer_agree_on_every_turn(tmp_path):
    trainer = GRPOTrainer("tiny", second_try(), config(tmp_path, max_completion_length=160))
    trainer.train()
    rollouts = [r for group in trainer.last_groups.groups for r in group.rollouts]
    assert sum(0 in r.loss_mask for r in rollouts) > 3  # a second turn was needed
    for entry in logs(trainer):
        assert entry["sampling/sampling_logp_difference/max"] < 1e-3
        assert entry["mismatch_kl"] < 1e-6
        assert entry["rollouts/failed"] == 0


def test_lengths_are_those_of_what_the_policy_wrote(tmp_path):
    trainer = GRPOTrainer("tiny", second_try(), config(tmp_path, max_steps=1, max_completion_length=160))
    trainer.train()
    rollouts = [r for group in trainer.last_groups.groups for r in group.rollouts]
    (entry,) = logs(trainer)
    assert entry["completions/mean_length"] == pytest.approx(
        sum(sum(r.loss_mask) for r in rollouts) / len(rollouts)
    )


class OneStep(GRPOTrainer):
    """Keeps the gradients of its only step; `change` alters the rollouts before it."""

    change = None

    def use_rollouts(self, step):
        if self.change:
            groups = [
                dataclasses.replace(g, rollouts=[self.change(r, n) for n, r in enumerate(g.rollouts)])
                for g in step.groups
            ]
            step = dataclasses.replace(step, groups=groups)
        super().use_rollouts(step)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        return loss


def gradients(tmp_path, change=None, **settings):
    trainer = OneStep(
        "tiny", second_try(), config(tmp_path, max_steps=1, max_completion_length=160, **settings)
    )
    trainer.change = change
    trainer.train()
    return trainer.gradients


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "gspo"])
def test_what_the_environment_wrote_moves_no_weight(tmp_path, loss_type):
    """Log-probs of the environment's tokens are noise: any others give the same gradients."""

    def noise(rollout, number):
        logprobs = [
            p if m else -9.0 for p, m in zip(rollout.sampler_logprobs, rollout.loss_mask, strict=True)
        ]
        return dataclasses.replace(rollout, reward=float(number % 2), sampler_logprobs=logprobs)

    def plain(rollout, number):
        return dataclasses.replace(rollout, reward=float(number % 2))

    clean = gradients(tmp_path / "clean", plain, loss_type=loss_type)
    noisy = gradients(tmp_path / "noisy", noise, loss_type=loss_type)
    assert any(g.abs().max() > 0 for g in clean.values())
    assert all(torch.equal(clean[name], noisy[name]) for name in clean)


def test_a_branch_is_trained_as_a_sequence_of_its_own(tmp_path):
    """The gradient of a rewritten history is that of its parts, each behind the prompt it was sampled with."""

    class Summarizes(vf.MultiTurnEnv):
        async def env_response(self, messages, state, **kwargs):
            return []

        async def get_prompt_messages(self, state):
            return [vf.UserMessage(content="go on")] if state["trajectory"] else state["prompt"]

    def counted(completion):
        return float(len(str(completion)) % 7)

    env = Summarizes(
        max_turns=2, dataset=echo_dataset(), eval_dataset=echo_dataset(2), rubric=vf.Rubric([counted])
    )
    trainer = GRPOTrainer("tiny", env, config(tmp_path, max_completion_length=24))
    trainer.train()
    assert all(len(r.branches) == 1 for group in trainer.last_groups.groups for r in group.rollouts)
    for entry in logs(trainer):
        assert entry["sampling/sampling_logp_difference/max"] < 1e-3


def tool(x: int) -> int:
    """Do something."""
    return x


def test_tools_that_the_template_does_not_show_are_warned_about(tmp_path, tokenizer):
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    env = vf.ToolEnv(
        tools=[tool], dataset=echo_dataset(), eval_dataset=echo_dataset(2), rubric=vf.Rubric([lambda: 1.0])
    )
    with pytest.warns(UserWarning, match="does not show them"):
        GRPOTrainer("tiny", env, config(tmp_path), processing_class=tokenizer)


def test_prompts_are_measured_with_their_tools(tmp_path):
    env = vf.ToolEnv(
        tools=[tool], dataset=echo_dataset(), eval_dataset=echo_dataset(2), rubric=vf.Rubric([lambda: 1.0])
    )
    with pytest.raises(ValueError, match="none of the 8 prompts fits"):
        GRPOTrainer("tiny", env, config(tmp_path, max_prompt_length=20))
