"""From logits to tokens: the filters of `SamplingParams`, and one uniform number per token.

Order of operations is vLLM's: repetition penalty, temperature, min-p, top-k, top-p. Sampling is by inverse
cumulative distribution: a row's token depends on its logits and its own uniform number only, so neighbours in
the batch cannot change it (but for the rounding of the logits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_gym.inference.sampler import SamplingParams


@dataclass(frozen=True)
class RowSettings:
    """The sampling parameters of all rows as tensors [num_rows]; None where no row uses the parameter."""

    temperature: Tensor | None
    greedy: Tensor | None
    min_p: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None
    repetition_penalty: tuple[float, ...] | None

    @classmethod
    def build(cls, params: Sequence[SamplingParams], vocab_size: int, like: Tensor) -> RowSettings:
        """Collect `params`; `like` gives dtype and device."""

        def column(values: list[float], unused: float) -> Tensor | None:
            return like.new_tensor(values) if any(value != unused for value in values) else None

        penalties = tuple(p.repetition_penalty for p in params)
        top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
        greedy = [p.temperature == 0 for p in params]
        return cls(
            temperature=column([p.temperature or 1.0 for p in params], 1.0),
            greedy=torch.tensor(greedy, device=like.device) if any(greedy) else None,
            min_p=column([p.min_p for p in params], 0.0),
            top_k=torch.tensor(top_k, device=like.device) if min(top_k) < vocab_size else None,
            top_p=column([p.top_p for p in params], 1.0),
            repetition_penalty=penalties if any(penalty != 1.0 for penalty in penalties) else None,
        )


def processed_log_probs(
    logits: Tensor, settings: RowSettings, seen: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """Log-probabilities of the distribution to sample from.

    Args:
        logits: `[num_rows, vocab_size]`, float32 or float64.
        settings: of the same rows. Rows at temperature 0 keep temperature 1 (their token is the argmax).
        seen: token ids of prompt and completion so far, per row; needed with a repetition penalty.

    Returns:
        `[num_rows, vocab_size]`, normalised per row; -inf for tokens that were filtered out.
    """
    if settings.repetition_penalty is not None:
        if seen is None:
            raise ValueError("a repetition penalty needs the tokens seen so far")
        logits = _penalise(logits, settings.repetition_penalty, seen)
    if settings.temperature is not None:
        logits = logits / settings.temperature[:, None]
    if settings.min_p is not None:
        floor = logits.amax(dim=-1, keepdim=True) + settings.min_p.log()[:, None]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if settings.top_k is not None or settings.top_p is not None:
        logits = _top_k_top_p(logits, settings.top_k, settings.top_p)
    return torch.log_softmax(logits, dim=-1)


def sample_tokens(log_probs: Tensor, uniforms: Tensor, greedy: Tensor | None = None) -> Tensor:
    """One token per row, the smallest id whose cumulative probability exceeds the row's uniform number.

    Args:
        log_probs: `[num_rows, vocab_size]`, normalised.
        uniforms: `[num_rows]` float64 in [0, 1).
        greedy: bool `[num_rows]`, rows that take their most probable token; None for none.

    Returns:
        int64 `[num_rows]`. A token of probability 0 is never returned.
    """
    tokens = _inverse_cdf(log_probs.exp(), uniforms)
    return tokens if greedy is None else torch.where(greedy, log_probs.argmax(dim=-1), tokens)


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    # Two levels, blocks and then tokens of one block: a running sum over the whole vocabulary costs more than
    # the rest of sampling together.
    rows, vocab_size = probs.shape
    width = math.isqrt(vocab_size - 1) + 1 if vocab_size > 1 else 1
    padding = -vocab_size % width
    blocks = (torch.nn.functional.pad(probs, (0, padding)) if padding else probs).view(rows, -1, width)
    masses = blocks.sum(dim=-1).double()
    cumulative = masses.cumsum(dim=-1)
    target = (uniforms * cumulative[:, -1])[:, None]
    block = _first_above(cumulative, target)
    before = (cumulative.gather(1, block) - masses.gather(1, block)).clamp_(min=0)
    inside = blocks[torch.arange(rows, device=probs.device), block[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    return (block * width + _first_above(inside, (target - before).clamp_(min=0)))[:, 0]


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index [num_rows, 1] of the first entry above target, never past the last entry that adds mass."""
    last = cumulative[:, -1:]
    below_total = torch.nextafter(last, torch.zeros_like(last))
    return torch.searchsorted(cumulative, torch.minimum(target, below_total), right=True)


def _penalise(logits: Tensor, penalties: Sequence[float], seen: Sequence[Sequence[int]]) -> Tensor:
    """CTRL's repetition penalty (arXiv 1909.05858), as transformers and vLLM apply it."""
    logits = logits.clone()
    for row, (penalty, ids) in enumerate(zip(penalties, seen, strict=True)):
        if penalty != 1.0:
            index = torch.tensor(sorted(set(ids)), device=logits.device)
            values = logits[row, index]
            logits[row, index] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def _top_k_top_p(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        rank = torch.arange(logits.shape[-1], device=logits.device)
        ordered = ordered.masked_fill(rank >= top_k[:, None], -torch.inf)
    if top_p is not None:
        probs = ordered.softmax(dim=-1)
        # The token that crosses top_p stays: what counts is the mass before it. The first always stays.
        dropped = probs.cumsum(dim=-1) - probs >= top_p[:, None]
        dropped[:, 0] = False
        ordered = ordered.masked_fill(dropped, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)
