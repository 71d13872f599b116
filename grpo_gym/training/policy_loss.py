"""From the rollouts of a step to the loss of one micro-batch: forward pass, ratio, clipping, KL, metrics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.training.config import GRPOConfig
from grpo_gym.training.logprobs import completion_logprobs, install_logprob_forward, packing_support
from grpo_gym.training.losses import importance_ratio, kl_k3, kl_penalty, policy_loss
from grpo_gym.training.metrics import Reduction
from grpo_gym.training.mismatch import mismatch_weights
from grpo_gym.training.packing import (
    PackedBatch,
    balance_over_ranks,
    lay_out,
    pad_packs,
    plan_micro_batches,
    split_for_ranks,
)
from grpo_gym.training.step_batch import StepBatch
from grpo_gym.vision.renderer import ImageChatRenderer
from grpo_gym.vision.training_batch import with_images

logger = logging.getLogger(__name__)


class PolicyLoss:
    """Computes the loss of packed micro-batches.

    Args:
        model: the unwrapped policy; its forward learns to return log-probs of packed completions.
        reference: the frozen model of the KL term; None when beta is 0 or an adapter can be switched off.
        args: loss settings.
        renderer: messages to ids; that of a vision-language model gives the pixels, too.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        args: GRPOConfig,
        renderer: ChatRenderer | None = None,
    ) -> None:
        self.args = args
        self._images = renderer if isinstance(renderer, ImageChatRenderer) else None
        self.reference = reference
        self._old_logprobs: dict[int, Tensor] = {}
        for each in filter(None, (model, reference)):
            install_logprob_forward(_causal_lm(each))
        support, reason = packing_support(_causal_lm(model))
        self.shared_prefix = args.shared_prefix and support == "shared_prefix"
        self.padded = support == "padded"
        if self.padded:
            logger.warning("sequences are right-padded, each with its own copy of the prompt: %s", reason)
        elif args.shared_prefix and not self.shared_prefix:
            logger.warning("prompts are computed once per completion, not once per group: %s", reason)

    def new_rollouts(self) -> None:
        """Forget the old policy's log-probs: the next pass over the rollouts is the first one."""
        self._old_logprobs.clear()

    def micro_batches(self, batch: StepBatch, rank: int, num_ranks: int) -> list[PackedBatch]:
        """The rank's share of the step; every rank gets the same number of micro-batches, at least one."""
        inputs = batch.pack_inputs(batch.trainable(keep_all=self.args.beta != 0.0))
        inputs = split_for_ranks(inputs, num_ranks, self.shared_prefix)
        shares = balance_over_ranks(inputs, num_ranks, self.shared_prefix)
        plans = [
            plan_micro_batches(
                [inputs[i] for i in share],
                self.args.max_tokens_per_micro_batch,
                shared_prefix=self.shared_prefix,
                padded=self.padded,
            )
            for share in shares
        ]
        packs = [lay_out(chosen, self.shared_prefix) for chosen in plans[rank]]
        return pad_packs(packs, max(1, *(len(plan) for plan in plans)))

    def __call__(self, model: nn.Module, pack: PackedBatch, batch: StepBatch, metrics: Reduction) -> Tensor:
        """Scalar loss of one micro-batch: its part of the whole step's loss."""
        device = next(model.parameters()).device
        if self._images is not None:
            pack = with_images(pack, batch.rollouts, self._images)
        pack = pack.to(device)
        logprobs, entropy = self._logprobs(model, pack)
        tokens = _TokenData.gather(pack, batch, device)
        old = self._old(pack, logprobs)
        per_token, stats = policy_loss(
            self.args.loss_type,
            logprobs,
            old,
            tokens.advantages,
            tokens.mask,
            pack.sequence_index,
            len(pack.rollout_ids),
            epsilon=self.args.epsilon,  # type: ignore[arg-type]  # set in GRPOConfig.__post_init__
            epsilon_high=self.args.epsilon_high,
            delta=self.args.delta,
        )
        correction, mismatch_stats = mismatch_weights(
            self.args.importance_sampling_mode,
            old,
            tokens.sampler_logprobs,
            tokens.mask,
            pack.sequence_index,
            len(pack.rollout_ids),
            cap=self.args.importance_sampling_cap,
        )
        per_token = per_token * correction
        if self.args.beta != 0.0:
            per_token = per_token + self.args.beta * self._kl(
                model, pack, logprobs, old, tokens.mask, metrics
            )
        metrics.add_mean("entropy", (entropy * tokens.mask).sum(), tokens.mask.sum())
        for each in (stats, mismatch_stats):
            each.add_to(metrics)
        # A micro-batch without tokens still has a (zero) loss that reaches every parameter's hooks.
        return (per_token * tokens.weights).sum() + 0.0 * logprobs.sum()

    def _logprobs(self, model: nn.Module, pack: PackedBatch) -> tuple[Tensor, Tensor]:
        return completion_logprobs(
            model, pack, temperature=self.args.temperature, chunk_size=self.args.logprob_chunk_size
        )

    def _kl(
        self,
        model: nn.Module,
        pack: PackedBatch,
        logprobs: Tensor,
        old: Tensor,
        mask: Tensor,
        metrics: Reduction,
    ) -> Tensor:
        """The KL penalty of each token, [N]; its plain k3 is what the metric `kl` shows."""
        reference = self._reference_logprobs(model, pack)
        metrics.add_mean("kl", (kl_k3(logprobs.detach(), reference) * mask).sum(), mask.sum())
        ratio = importance_ratio(
            self.args.loss_type, logprobs, old, mask, pack.sequence_index, len(pack.rollout_ids)
        )
        return kl_penalty(logprobs, reference, ratio)

    def _old(self, pack: PackedBatch, logprobs: Tensor) -> Tensor:
        """Log-probs of the policy before the first update on these rollouts.

        All micro-batches of a step are computed before the optimizer moves, so the first pass gives them
        for free and no extra forward pass is needed.
        """
        if self.args.num_iterations == 1:
            return logprobs.detach()
        lengths = torch.bincount(pack.sequence_index, minlength=len(pack.rollout_ids)).tolist()
        for rollout_id, part in zip(pack.rollout_ids, logprobs.detach().split(lengths), strict=True):
            self._old_logprobs.setdefault(rollout_id, part.clone())
        if not pack.rollout_ids:
            return logprobs.detach()
        return torch.cat([self._old_logprobs[rollout_id] for rollout_id in pack.rollout_ids])

    @torch.no_grad()
    def _reference_logprobs(self, model: nn.Module, pack: PackedBatch) -> Tensor:
        if self.reference is not None:
            return self._logprobs(self.reference, pack)[0]
        with _adapter_disabled(model):
            return self._logprobs(model, pack)[0]

    def state_dict(self) -> dict[str, list[float]]:
        """Old log-probs, for a checkpoint between two iterations over the same rollouts."""
        return {str(rollout_id): values.tolist() for rollout_id, values in self._old_logprobs.items()}

    def load_state_dict(self, state: dict[str, list[float]], device: torch.device) -> None:
        """Restore what `state_dict` gave."""
        self._old_logprobs = {int(i): torch.tensor(values, device=device) for i, values in state.items()}


class _TokenData:
    """Per-token facts of a micro-batch, all [N]: advantages, loss mask, loss weights, sampler log-probs."""

    def __init__(self, advantages: Tensor, mask: Tensor, weights: Tensor, sampler_logprobs: Tensor) -> None:
        self.advantages = advantages
        self.mask = mask
        self.weights = weights
        self.sampler_logprobs = sampler_logprobs

    @classmethod
    def gather(cls, pack: PackedBatch, batch: StepBatch, device: torch.device) -> _TokenData:
        ids = torch.tensor(pack.rollout_ids, dtype=torch.long)
        rollouts = [batch.rollouts[i] for i in pack.rollout_ids]
        mask = torch.tensor([m for r in rollouts for m in r.loss_mask], dtype=torch.float32, device=device)
        sampler = torch.tensor(
            [p for r in rollouts for p in r.sampler_logprobs], dtype=torch.float32, device=device
        )
        index = pack.sequence_index
        advantages = batch.advantages[ids].to(device, torch.float32)[index]
        weights = batch.weights[ids].to(device, torch.float32)[index] * mask
        return cls(advantages, mask, weights, sampler)


def _causal_lm(model: nn.Module) -> Any:
    """The Hugging Face causal LM inside a PEFT model, or the model itself."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model else model


@contextlib.contextmanager
def _adapter_disabled(model: nn.Module) -> Iterator[None]:
    peft_model = next(module for module in model.modules() if hasattr(module, "disable_adapter"))
    with peft_model.disable_adapter():  # type: ignore[operator]
        yield
