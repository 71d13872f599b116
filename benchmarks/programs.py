"""The two programs of `train_step`: loss and backward of ready-made rollouts, here and in TRL."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from grpo_gym import GRPOConfig
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.rollouts.types import RolloutGroup
from grpo_gym.training.metrics import Reduction
from grpo_gym.training.policy_loss import PolicyLoss
from grpo_gym.training.step_batch import StepBatch, make_step_batch

MAX_COMPLETION_LENGTH = 8192
SETTINGS: dict[str, Any] = {
    "loss_type": "dapo",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "temperature": 1.0,
    "num_iterations": 1,
    "max_completion_length": MAX_COMPLETION_LENGTH,
    "report_to": "none",
    "logging_steps": 1,
}


class Program(Protocol):
    """Adds the gradients of one optimizer step to `model`."""

    model: PreTrainedModel

    def step(self, groups: Sequence[RolloutGroup]) -> float:
        """Forward and backward of all groups; returns the loss."""
        ...


class OurProgram:
    """Packed micro-batches through `PolicyLoss`: what `GRPOTrainer._forward_backward` does on one rank."""

    def __init__(self, model: PreTrainedModel, group_size: int, dtype: str) -> None:
        self.model = model
        self._autocast = autocast(model, dtype)
        self._args = GRPOConfig(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=group_size,
            num_generations=group_size,
            use_cpu=model.device.type == "cpu",
            bf16=dtype == "bfloat16",
            importance_sampling_mode="none",
            **SETTINGS,
        )
        self._policy_loss = PolicyLoss(model, None, self._args)

    def step(self, groups: Sequence[RolloutGroup]) -> float:
        """See `Program`."""
        batch = step_batch(groups)
        self._policy_loss.new_rollouts()
        reduction = Reduction()
        total = torch.zeros((), device=self.model.device)
        for pack in self._policy_loss.micro_batches(batch, 0, 1):
            with self._autocast:
                loss = self._policy_loss(self.model, pack, batch, reduction)
            loss.backward()
            total += loss.detach()
        return float(total)


class TrlProgram:
    """`trl.GRPOTrainer` as installed: its constructor patches the model, `_compute_loss` runs unchanged.

    A device batch is one group, padded as TRL pads it (prompts left, completions right), with TRL's default
    chunked LM head. Several groups are gradient accumulation.
    """

    def __init__(self, model: PreTrainedModel, group_size: int, dtype: str, num_groups: int = 1) -> None:
        import trl
        from datasets import Dataset

        self.model = model
        args = trl.GRPOConfig(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=group_size,
            gradient_accumulation_steps=num_groups,
            num_generations=group_size,
            use_cpu=model.device.type == "cpu",
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            **SETTINGS,
        )
        self._trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=[_no_reward],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["unused"] * group_size}),
            processing_class=AutoTokenizer.from_pretrained(TINY_MODEL_PATH),
        )
        self._trainer.current_gradient_accumulation_steps = num_groups

    def step(self, groups: Sequence[RolloutGroup]) -> float:
        """See `Program`."""
        batch = step_batch(groups)
        total = 0.0
        for index in range(len(groups)):
            inputs = self._inputs(batch, (batch.group_index == index).nonzero().flatten().tolist())
            with self._trainer.compute_loss_context_manager():
                loss = self._trainer._compute_loss(self.model, inputs)
            # As in Trainer.training_step: the trainer's losses are divided already, and accelerate's
            # backward would divide by its own accumulation count (1 here).
            self._trainer.accelerator.backward(loss)
            total += float(loss.detach())
        return total

    def _inputs(self, batch: StepBatch, rollout_ids: list[int]) -> dict[str, Tensor]:
        """A device batch as `_generate_and_score_completions` lays it out."""
        from trl.trainer.utils import pad

        device = self.model.device
        prompts = [torch.tensor(batch.rollouts[i].prompt_ids) for i in rollout_ids]
        completions = [torch.tensor(batch.rollouts[i].completion_ids) for i in rollout_ids]
        inputs = {
            "prompt_ids": pad(prompts, 0, "left"),
            "prompt_mask": pad([torch.ones_like(ids) for ids in prompts], 0, "left"),
            "completion_ids": pad(completions, 0, "right"),
            "completion_mask": pad([torch.ones_like(ids) for ids in completions], 0, "right"),
            "advantages": batch.advantages[rollout_ids].float(),
            "num_items_in_batch": batch.lengths.sum(),
        }
        return {name: value.to(device) for name, value in inputs.items()}


def make_program(
    name: str, model: PreTrainedModel, group_size: int, dtype: str, num_groups: int = 1
) -> Program:
    """`ours` or `trl`."""
    if name == "ours":
        return OurProgram(model, group_size, dtype)
    return TrlProgram(model, group_size, dtype, num_groups)


def timed_step(program: Program, groups: Sequence[RolloutGroup]) -> float:
    """Seconds of one step, with gradients zeroed before the clock starts."""
    zero_gradients(program.model)
    synchronize(program.model.device)
    start = time.perf_counter()
    program.step(groups)
    synchronize(program.model.device)
    return time.perf_counter() - start


def step_batch(groups: Sequence[RolloutGroup]) -> StepBatch:
    """Advantages (group-scaled, the same numbers for both programs) and loss weights of a step."""
    return make_step_batch(groups, "dapo", "group", MAX_COMPLETION_LENGTH, False, len(groups[0].rollouts))


def zero_gradients(model: PreTrainedModel) -> None:
    """Zero the gradients in place: both programs start with allocated gradients."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.zero_()


def autocast(model: PreTrainedModel, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """What both trainers do with bf16=True: float32 master weights, bfloat16 arithmetic."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype=getattr(torch, dtype))


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _no_reward(completions: list[Any], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)
