"""The policy losses: GRPO and its descendants, on flat tokens.

A micro-batch is N completion tokens of S whole sequences, without padding; `sequence_index` [N] says which
sequence a token belongs to, `loss_mask` [N] whether it is trained on (0: written by the environment, or in a
truncated completion that is left out). With the weights of the whole optimizer step from `token_weights`,

    loss = sum over tokens t of  weight[sequence(t)] * per_token_loss[t]

summed over all micro-batches and ranks is the loss as its paper defines it, however the step was split.

Sources:
    PPO             Schulman et al. 2017, arXiv:1707.06347
    GRPO            DeepSeekMath, Shao et al. 2024, arXiv:2402.03300
    DAPO            Yu et al. 2025, arXiv:2503.14476
    Dr. GRPO        Liu et al. 2025, arXiv:2503.20783
    GSPO            Zheng et al. 2025, arXiv:2507.18071
    CISPO           MiniMax-M1 2025, arXiv:2506.13585; with an upper cap only: ScaleRL 2025, arXiv:2510.13786
    two-sided clip  INTELLECT-2, Prime Intellect 2025, arXiv:2505.07291
    k3              Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html
    weighted k3     DeepSeek-V3.2 2025, arXiv:2512.02556
    BNPO            the name TRL gives to the token mean over a local batch
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_gym.training.batch_statistics import BatchStatistics, sequence_lengths, sequence_mean
from grpo_gym.training.choices import check_choice

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo")
CISPO_RATIO_CAP = 5.0
"""`epsilon_high` of cispo when none is given: ScaleRL's recommendation."""


def check_loss_type(loss_type: str) -> None:
    """Raise ValueError, naming the valid ones and the nearest, unless `loss_type` is one of `LOSS_TYPES`."""
    check_choice("loss_type", loss_type, LOSS_TYPES)


def resolve_epsilon_high(
    loss_type: str, epsilon: float, epsilon_high: float | None = None, delta: float | None = None
) -> float:
    """Check the clipping settings and give the upper one its default: `epsilon`; for cispo `CISPO_RATIO_CAP`.

    Raises:
        ValueError: an unknown loss, or limits that cut a ratio of 1 or have no effect.
    """
    check_loss_type(loss_type)
    if loss_type == "cispo":
        return _cispo_cap(epsilon_high, delta)
    high = epsilon if epsilon_high is None else epsilon_high
    if not 0.0 <= epsilon < 1.0 or high < 0.0:
        raise ValueError(
            f"epsilon={epsilon}, epsilon_high={high}: use 0 <= epsilon < 1 and epsilon_high >= 0."
        )
    if delta is not None and delta <= 1.0 + high:
        raise ValueError(f"delta={delta} must be above 1 + epsilon_high = {1.0 + high}, or None.")
    return high


def _cispo_cap(epsilon_high: float | None, delta: float | None) -> float:
    cap = CISPO_RATIO_CAP if epsilon_high is None else epsilon_high
    if cap < 1.0:
        raise ValueError(
            f"epsilon_high={cap}: with loss_type='cispo' it caps the ratio itself; use at least 1 "
            f"(recommended: {CISPO_RATIO_CAP}), or None."
        )
    if delta is not None:
        raise ValueError(f"delta={delta} has no effect with loss_type='cispo'; leave it None.")
    return cap


def token_weights(
    loss_type: str,
    lengths: Tensor,
    max_completion_length: int,
    *,
    valid: Tensor | None = None,
    batch_index: Tensor | None = None,
) -> Tensor:
    """Weight in the loss of each trained token, by rollout, for the optimizer step as a whole.

    With B valid rollouts of L_i trained tokens in the step (of all micro-batches and all ranks):

    - grpo, gspo: 1 / (B L_i), the mean over sequences of token means (DeepSeekMath Eq. 3, GSPO Eq. 5).
      In gspo all tokens of a sequence carry the same loss, so the token mean is that loss.
    - bnpo: 1 / (K * trained tokens of the rollout's batch), the mean over K batches of token means. TRL's
      batch is whatever one device trains on at once; here it is said by `batch_index`, so that packing
      cannot change the loss. Without it the step is one batch, and bnpo is dapo.
    - dr_grpo: 1 / (B * max_completion_length); a constant, so no length is favoured (Dr. GRPO, section 3.2).
    - dapo, cispo: 1 / trained tokens of the step (DAPO Eq. 8 and MiniMax-M1 Eq. 4 divide by the tokens of
      one prompt's group; as in TRL, the groups of a step are taken together).

    A rollout with no trained tokens (a truncated completion, masked) is still one of B, as in TRL: it is
    a sample with loss 0. A rollout that is not `valid` (never generated or scored) counts in nothing.

    Args:
        loss_type: one of `LOSS_TYPES`.
        lengths: [B] integer, trained tokens of each rollout of the whole step.
        max_completion_length: the constant of dr_grpo, in tokens.
        valid: [B] bool; None: all.
        batch_index: [B] long, the batch of each rollout; only bnpo reads it.

    Returns:
        [B] float64, 0 for a rollout with nothing to train on. Data parallelism that averages gradients
        over ranks needs them multiplied by the number of ranks.

    Raises:
        ValueError: unknown `loss_type`.
    """
    check_loss_type(loss_type)
    counted = torch.ones_like(lengths, dtype=torch.bool) if valid is None else valid.to(torch.bool)
    tokens = torch.where(counted, lengths, 0).to(torch.float64)
    num_sequences = counted.sum().clamp(min=1)
    if loss_type in ("grpo", "gspo"):
        denominator = num_sequences * tokens.clamp(min=1)
    elif loss_type == "dr_grpo":
        denominator = (num_sequences * max_completion_length).expand_as(tokens)
    elif loss_type == "bnpo" and batch_index is not None:
        denominator = _batch_denominator(tokens, counted, batch_index)
    else:
        denominator = tokens.sum().clamp(min=1).expand_as(tokens)
    return torch.where(tokens > 0, 1.0 / denominator, 0.0)


def _batch_denominator(tokens: Tensor, counted: Tensor, batch_index: Tensor) -> Tensor:
    """Number of batches with a counted rollout, times the tokens of the rollout's batch: [B]."""
    _, batch = torch.unique(batch_index, return_inverse=True)
    num_batches = torch.unique(batch[counted]).numel()
    return num_batches * torch.bincount(batch, weights=tokens)[batch].clamp(min=1)


def importance_ratio(
    loss_type: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    loss_mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
) -> Tensor:
    """Ratio of the policy to the one that sampled, by token: [N], differentiable, 1 where `loss_mask` is 0.

    By token pi(o_t) / pi_old(o_t) (DeepSeekMath Eq. 3); for gspo by sequence,
    (pi(o) / pi_old(o)) ** (1 / |o|) (GSPO Eq. 7), the same for all trained tokens of a sequence.
    """
    mask = loss_mask.bool()
    # Masked before exp: environment tokens may have any log-prob, and inf * 0 would be NaN in backward.
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0.0)
    if loss_type == "gspo":
        mean = sequence_mean(log_ratio, mask, sequence_index, num_sequences)
        log_ratio = torch.where(mask, mean[sequence_index], 0.0)
    return torch.exp(log_ratio)


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """PPO's clipped loss -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), elementwise (PPO Eq. 7).

    Two different limits are DAPO's clip-higher (DAPO Eq. 8). PPO leaves the ratio unbounded where A < 0;
    `delta` bounds it there: r becomes min(r, delta) in the first term (INTELLECT-2, two-sided clipping).
    """
    clipped = torch.clamp(ratio, 1.0 - epsilon, 1.0 + epsilon_high)
    bounded = ratio if delta is None else torch.clamp(ratio, max=delta)
    return -torch.min(bounded * advantages, clipped * advantages)


def cispo_loss(ratio: Tensor, advantages: Tensor, logprobs: Tensor, cap: float) -> Tensor:
    """-stop_gradient(min(r, cap)) A log pi, elementwise: no token's gradient is ever dropped.

    MiniMax-M1 Eq. 4; of its two limits on r (Eq. 5) the lower one is not used there either, and the upper
    one is given as the cap itself, not as 1 + epsilon (ScaleRL, TRL).
    """
    return -torch.clamp(ratio, max=cap).detach() * advantages * logprobs


def policy_loss(
    loss_type: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> tuple[Tensor, BatchStatistics]:
    """Loss of each token, not yet weighted, with the share of clipped tokens.

    grpo, bnpo, dr_grpo and dapo differ in `token_weights` only; gspo clips by sequence, cispo by weight.
    Mismatch weights multiply the result; a KL penalty is added after that, as in TRL.

    Args:
        loss_type: one of `LOSS_TYPES`.
        logprobs: [N] float32 or float64, log-probs of the sampled tokens under the policy, with gradient.
        old_logprobs: [N], under the policy before the first update on these rollouts (`logprobs.detach()`
            in the first iteration).
        advantages: [N], each token with its rollout's (constant within a sequence for gspo).
        loss_mask: [N] bool or 0/1.
        sequence_index: [N] long in 0..S-1; sequences are whole.
        num_sequences: S.
        epsilon: lower limit of the ratio is 1 - epsilon; unused by cispo. The GSPO paper's limits are
            3e-4 and 4e-4, for its ratio is a mean over a sequence.
        epsilon_high: upper limit is 1 + epsilon_high; for cispo `epsilon_high` itself. Default: see
            `resolve_epsilon_high`.
        delta: two-sided clipping; None for the usual one.

    Returns:
        per_token_loss [N], 0 where `loss_mask` is 0, and statistics named as TRL's metrics:
        `clip_ratio/low_mean`, `high_mean`, `region_mean` over tokens (sequences for gspo), `low_min` and
        `high_max` over the sequences' means; `cispo_clip_ratio` for cispo.

    Raises:
        ValueError: unknown `loss_type`, or limits that cannot be meant (see `resolve_epsilon_high`).
    """
    high = resolve_epsilon_high(loss_type, epsilon, epsilon_high, delta)
    mask = loss_mask.bool()
    ratio = importance_ratio(loss_type, logprobs, old_logprobs, mask, sequence_index, num_sequences)
    if loss_type == "cispo":
        per_token = cispo_loss(ratio, advantages, logprobs, high)
        statistics = BatchStatistics()
        statistics.add_mean("cispo_clip_ratio", ((ratio > high) & (advantages > 0)).to(ratio.dtype), mask)
    else:
        per_token = clipped_surrogate(ratio, advantages, epsilon, high, delta)
        low_clipped = ((ratio < 1.0 - epsilon) & (advantages < 0)).to(ratio.dtype)
        high_clipped = ((ratio > 1.0 + high) & (advantages > 0)).to(ratio.dtype)
        by_sequence = loss_type == "gspo"
        statistics = _clip_statistics(
            low_clipped, high_clipped, mask, sequence_index, num_sequences, by_sequence
        )
    return torch.where(mask, per_token, 0.0), statistics


def _clip_statistics(
    low: Tensor, high: Tensor, mask: Tensor, sequence_index: Tensor, num_sequences: int, by_sequence: bool
) -> BatchStatistics:
    """Shares of tokens [N] (or sequences) whose gradient the lower and the upper limit cut off."""
    trained = sequence_lengths(mask, sequence_index, num_sequences) > 0
    low_share = sequence_mean(low, mask, sequence_index, num_sequences)
    high_share = sequence_mean(high, mask, sequence_index, num_sequences)
    statistics = BatchStatistics()
    lows, highs, counted = (low_share, high_share, trained) if by_sequence else (low, high, mask)
    statistics.add_mean("clip_ratio/low_mean", lows, counted)
    statistics.add_mean("clip_ratio/high_mean", highs, counted)
    # Nothing is clipped at both ends, so the region is their sum.
    statistics.add_mean("clip_ratio/region_mean", lows + highs, counted)
    statistics.add_extreme("clip_ratio/low_min", low_share[trained], largest=False)
    statistics.add_extreme("clip_ratio/high_max", high_share[trained], largest=True)
    return statistics


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from tokens of the policy: exp(d) - d - 1 with d = ref - logp.

    Schulman's k3 = (r - 1) - log r, DeepSeekMath Eq. 4: unbiased, never negative, lower variance than -d.

    Args:
        logprobs: [N], differentiable.
        ref_logprobs: [N].

    Returns:
        [N], nats.
    """
    difference = ref_logprobs - logprobs
    # expm1 keeps the digits that exp(d) - 1 loses where the two policies nearly agree.
    return torch.expm1(difference) - difference


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor) -> Tensor:
    """k3 weighted by the importance ratio, so that its *gradient* is right as well as its value.

    The gradient of k3 alone is not an estimate of the gradient of KL(policy || reference), not even on
    policy; r * k3 has it, in expectation over the old policy's tokens, because r is differentiated too
    (DeepSeek-V3.2, "unbiased KL estimate"; TRL's `use_bias_correction_kl`, on by default).

    Args:
        logprobs: [N], differentiable.
        ref_logprobs: [N].
        ratio: [N], from `importance_ratio`.

    Returns:
        [N], nats.
    """
    return ratio * kl_k3(logprobs, ref_logprobs)
