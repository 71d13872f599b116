"""TRL's own code as the oracle: its advantages, importance ratios, normalisers, losses and gradients.

A `trl.GRPOTrainer` without its constructor: only generation, scoring and the forward pass are replaced, by
the numbers of a `RandomStep`. `_generate_and_score_completions` and `_compute_loss` run as installed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import trl
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

EOS, PAD, OTHER = 1, 0, 2
MAX_COMPLETION_LENGTH = 9
NUM_GENERATIONS = 4


@dataclass
class RandomStep:
    """One optimizer step: B rollouts of varied length; lists hold one [L_i] tensor per rollout."""

    rewards: Tensor
    lengths: list[int]
    logprobs: list[Tensor]
    old_logprobs: list[Tensor]
    sampler_logprobs: list[Tensor]
    ref_logprobs: list[Tensor]
    environment_mask: list[Tensor]
    truncated: Tensor

    @property
    def num_rollouts(self) -> int:
        return len(self.lengths)

    @property
    def group_index(self) -> Tensor:
        return torch.arange(self.num_rollouts) // NUM_GENERATIONS

    def masks(self, mask_truncated: bool) -> list[Tensor]:
        cut = [mask_truncated and bool(t) for t in self.truncated]
        return [m * (0 if c else 1) for m, c in zip(self.environment_mask, cut, strict=True)]


def random_step(
    seed: int, num_rollouts: int = 16, drift: float = 0.4, environment_tokens: bool = True
) -> RandomStep:
    """Ratios spread far enough that every clip limit cuts something."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, MAX_COMPLETION_LENGTH + 1, (num_rollouts,), generator=rng).tolist()

    def noise(scale: float) -> list[Tensor]:
        return [scale * torch.randn(n, generator=rng, dtype=torch.float64) for n in lengths]

    def shifted(base: list[Tensor], scale: float) -> list[Tensor]:
        return [b + n for b, n in zip(base, noise(scale), strict=True)]

    old = [-n.abs() - 0.1 for n in noise(2.0)]
    environment_mask = [(torch.rand(n, generator=rng) > 0.2).long() for n in lengths]
    for mask in environment_mask:
        mask[0] = 1  # the policy wrote the first token, so that no sequence is empty by accident
    return RandomStep(
        rewards=torch.randint(0, 4, (num_rollouts,), generator=rng) / 3.0 + 0.0,
        lengths=lengths,
        logprobs=shifted(old, drift),
        old_logprobs=old,
        sampler_logprobs=shifted(old, drift),
        ref_logprobs=shifted(old, drift),
        environment_mask=environment_mask,
        truncated=torch.rand(num_rollouts, generator=rng) < 0.3,
    )


@dataclass
class OracleResult:
    """What was computed for a step; gradients per rollout [L_i], TRL's metrics by micro-batch."""

    loss: float
    gradients: list[Tensor]
    advantages: Tensor
    metrics: dict[str, list[float]]


def trl_step(step: RandomStep, num_micro_batches: int = 1, **settings: object) -> OracleResult:
    """The summed loss of a step in TRL, accumulated over micro-batches of equally many rollouts."""
    trainer = _bare_trainer(step, num_micro_batches, settings)
    batch = trainer._generate_and_score_completions([{"prompt": "p"}] * step.num_rollouts)
    if not settings.get("given_old_logprobs", True):
        batch.pop("old_per_token_logps")
    policy = _pad(step.logprobs).requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    chunks = zip(split_tensor_dict(batch, num_micro_batches), policy.chunk(num_micro_batches), strict=True)
    for micro_batch, rows in chunks:
        trainer.forward_rows = rows
        loss = loss + trainer._compute_loss(trainer.model, micro_batch)
    (gradient,) = torch.autograd.grad(loss, policy)
    gradients = [row[:n] for row, n in zip(gradient, step.lengths, strict=True)]
    return OracleResult(float(loss.detach()), gradients, batch["advantages"], dict(trainer._metrics["train"]))


class _OracleTrainer(trl.GRPOTrainer):
    """Attributes that are set on the instance by hand instead of by the constructor."""

    model = None
    step: RandomStep
    forward_rows: Tensor

    def _generate(self, prompts):
        step = self.step
        ids = [
            [OTHER] * (n - 1) + [OTHER if t else EOS]
            for n, t in zip(step.lengths, step.truncated, strict=True)
        ]
        environment_mask = [m.tolist() for m in step.environment_mask]
        logprobs = [p.tolist() for p in step.sampler_logprobs]
        return [[OTHER]] * len(ids), ids, environment_mask, [""] * len(ids), logprobs, {}, None, None

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        return self.step.rewards.unsqueeze(1)

    def _get_per_token_logps_and_entropies(self, model, *args, compute_entropy=False, **kwargs):
        if compute_entropy:  # the training forward pass
            return self.forward_rows, torch.zeros_like(self.forward_rows), None
        return _pad(self.step.ref_logprobs if model is self.ref_model else self.step.old_logprobs), None, None


def _bare_trainer(step: RandomStep, num_micro_batches: int, settings: dict) -> _OracleTrainer:
    trainer = object.__new__(_OracleTrainer)
    mismatch_cap = settings.get("mismatch_cap")
    trainer.step = step
    trainer.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    trainer.ref_model = object()
    trainer.accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )
    trainer.args = SimpleNamespace(
        per_device_train_batch_size=step.num_rollouts // num_micro_batches,
        steps_per_generation=num_micro_batches,
        gradient_accumulation_steps=2 * num_micro_batches + 1,  # "misaligned": old log-probs are used
        gradient_checkpointing_kwargs=None,
        delta=settings.get("delta"),
        use_bias_correction_kl=settings.get("use_bias_correction_kl", True),
    )
    attributes = {
        "current_gradient_accumulation_steps": num_micro_batches,
        "loss_type": settings.get("loss_type", "grpo"),
        "importance_sampling_level": settings.get("importance_sampling_level", "token"),
        "scale_rewards": settings.get("scale_rewards", "group"),
        "multi_objective_aggregation": "sum_then_normalize",
        "epsilon_low": settings.get("epsilon", 0.2),
        "epsilon_high": settings.get("epsilon_high", 0.2),
        "beta": settings.get("beta", 0.0),
        "mask_truncated_completions": settings.get("mask_truncated_completions", False),
        "use_vllm": mismatch_cap is not None,
        "vllm_importance_sampling_correction": mismatch_cap is not None,
        "vllm_importance_sampling_mode": settings.get("mismatch_mode", "token_truncate"),
        "vllm_importance_sampling_clip_max": mismatch_cap,
        "vllm_importance_sampling_clip_min": None,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "num_generations": NUM_GENERATIONS,
        "num_iterations": 2,
        "reward_weights": torch.ones(1, dtype=torch.float64),
        "reward_funcs": [None],
        "reward_func_names": ["f"],
        "eos_token_ids": [EOS],
        "_tokenizer": SimpleNamespace(pad_token_id=PAD),
        "pad_to_multiple_of": None,
        "environment_factories": None,
        "environments": None,
        "tools": [],
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "log_multimodal": False,
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_metrics": {"train": defaultdict(list)},
        "_logs": defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
    }
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def _pad(rows: list[Tensor]) -> Tensor:
    # Padding is NaN-free but wild, so that reading it would show.
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-7.0)
