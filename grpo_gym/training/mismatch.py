"""Correction for a sampler (vLLM) whose probabilities differ from the trainer's for the same weights.

Two programs with different kernels and precisions give the same token different probabilities, so the tokens
come from another distribution than the gradient supposes. Bounded importance weights pi_trainer / pi_sampler
take that back. With `old_logprobs` the trainer's own log-probs before the update:

- `token_truncate`: min(ratio, cap) by token. Truncated importance sampling: Ionides 2008; Yao et al. 2025,
  "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
- `token_mask`: the ratio by token, but 0 above cap. Masked importance sampling: IcePop, Ring-1T report 2025,
  arXiv:2510.18855 (which masks below a lower limit too).
- `sequence_mask`: 1 for every token of a sequence whose geometric-mean ratio lies in [1 / cap, cap], else 0.
  A plain product of ratios drifts from 1 with the number of tokens, so that its limits would reject long
  answers for being long (Liu et al. 2025, "When Speed Kills Stability"; hence the mean).
- `none`: 1 everywhere; the mismatch is still measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_gym.training.batch_statistics import BatchStatistics, sequence_mean
from grpo_gym.training.choices import check_choice
from grpo_gym.training.losses import kl_k3

DEFAULT_CAPS = {"token_truncate": 3.0, "token_mask": 3.0, "sequence_mask": 1.05, "none": 1.0}
"""By mode. Tokens: TRL's. Sequences: a mean ratio varies far less than a token's, so 3 would never act."""
MISMATCH_MODES = tuple(DEFAULT_CAPS)


@torch.no_grad()
def mismatch_weights(
    mode: str,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    loss_mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    cap: float | None = None,
) -> tuple[Tensor, BatchStatistics]:
    """Weights that multiply the policy loss of each token (not the KL penalty), without gradient.

    Args:
        mode: one of `MISMATCH_MODES`.
        old_logprobs: [N], the trainer's log-probs of the sampled tokens, for the weights that sampled them.
        sampler_logprobs: [N], the sampler's, after temperature and top-p; NaN where it gave none: such a
            token is left as it is (weight 1, as in TRL) and counts in no statistic.
        loss_mask: [N] bool or 0/1; elsewhere the weight is 1.
        sequence_index: [N] long in 0..S-1; sequences are whole.
        num_sequences: S.
        cap: largest ratio allowed, at least 1; None: `DEFAULT_CAPS[mode]`.

    Returns:
        weights [N], and statistics over trained tokens named as TRL's metrics:
        `sampling/sampling_logp_difference/mean` and `/max` (absolute, nats),
        `sampling/importance_sampling_ratio/min`, `/mean`, `/max` of the weights as applied, and
        `mismatch_kl`, k3 of KL(sampler || trainer).

    Raises:
        ValueError: unknown `mode`, or `cap` below 1.
    """
    cap = _checked_cap(mode, cap)
    known = loss_mask.bool() & ~sampler_logprobs.isnan()
    log_ratio = torch.where(known, old_logprobs - sampler_logprobs, 0.0)
    if mode == "token_truncate":
        weights = log_ratio.exp().clamp(max=cap)
    elif mode == "token_mask":
        ratio = log_ratio.exp()
        weights = torch.where(ratio > cap, 0.0, ratio)
    elif mode == "sequence_mask":
        mean = sequence_mean(log_ratio, known, sequence_index, num_sequences)
        inside = (mean.exp() <= cap) & ((-mean).exp() <= cap)
        weights = torch.where(known, inside.to(log_ratio.dtype)[sequence_index], 1.0)
    else:
        weights = torch.ones_like(log_ratio)
    return weights, _mismatch_statistics(log_ratio, weights, known)


def _mismatch_statistics(log_ratio: Tensor, weights: Tensor, known: Tensor) -> BatchStatistics:
    difference = log_ratio.abs()
    statistics = BatchStatistics()
    statistics.add_mean("sampling/sampling_logp_difference/mean", difference, known)
    statistics.add_extreme("sampling/sampling_logp_difference/max", difference[known], largest=True)
    statistics.add_extreme("sampling/importance_sampling_ratio/min", weights[known], largest=False)
    statistics.add_mean("sampling/importance_sampling_ratio/mean", weights, known)
    statistics.add_extreme("sampling/importance_sampling_ratio/max", weights[known], largest=True)
    statistics.add_mean("mismatch_kl", kl_k3(torch.zeros_like(log_ratio), log_ratio), known)
    return statistics


def _checked_cap(mode: str, cap: float | None) -> float:
    check_choice("importance_sampling_mode", mode, MISMATCH_MODES)
    if cap is not None and not cap >= 1.0:
        raise ValueError(f"importance_sampling_cap={cap}: use at least 1, the ratio where both agree.")
    return DEFAULT_CAPS[mode] if cap is None else cap
