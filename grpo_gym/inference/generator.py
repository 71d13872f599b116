"""In-process generation with a transformers model: continuous batching without padding.

Every step is one forward pass over one packed sequence: the newest token of each running sequence, and the
whole prompts of sequences that just joined. The completions of a group share one prompt, computed and stored
once. Finished sequences leave and waiting ones take their place. For CPU and debugging; on a GPU use vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from grpo_gym.inference.continuous_batch import (
    ContinuousBatch,
    Decode,
    Limits,
    Prompt,
    SequenceState,
    UniformStream,
)
from grpo_gym.inference.sampler import ImagePrompt, PromptTooLongError, SamplingParams
from grpo_gym.inference.shared_prefix_attention import use_shared_prefix_attention
from grpo_gym.rollouts.types import FinishReason


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to sample. Requests with equal `prompt_ids` share the computation of the prompt."""

    prompt_ids: list[int]
    params: SamplingParams
    images: ImagePrompt | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What was sampled; `completion_ids` ends with the end-of-sequence token when it was sampled.

    `logprobs` has one entry per token, of the distribution that was sampled from (at temperature 0: of the
    distribution at temperature 1).
    """

    completion_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def generate(
    model: nn.Module,
    requests: Sequence[GenerationRequest],
    *,
    eos_token_ids: Set[int],
    max_model_len: int | None = None,
    max_batch_size: int = 256,
    max_batch_tokens: int = 131_072,
    decode: Decode | None = None,
) -> list[GenerationResult]:
    """Sample one completion per request.

    The model is put in evaluation mode for the call and given back as it was; it must not be used meanwhile.

    Args:
        model: a transformers causal language model with full or sliding-window attention, unsharded.
        requests: in any order; results come in the same order. `seed=None` draws a seed from torch's global
            generator.
        eos_token_ids: ids that end a completion (included in it).
        max_model_len: longest prompt + completion; default `max_position_embeddings`.
        max_batch_size: most sequences computed together.
        max_batch_tokens: most tokens cached together; one sequence is always allowed.
        decode: ids to text; needed when a request has stop strings.

    Raises:
        PromptTooLongError: a prompt leaves no room for one token.
        ValueError: an empty prompt, `max_tokens` below 1, stop strings without `decode`, unsupported model.
    """
    limits = Limits(
        eos_token_ids, max_model_len or context_length(model), max_batch_size, max_batch_tokens, decode
    )
    sequences = _make_sequences(requests, limits)
    with generation_mode(model):
        ContinuousBatch(model, sequences, limits).run()
    return [_result(sequence) for sequence in sequences]


def context_length(model: nn.Module) -> int:
    """`max_position_embeddings` of a transformers model."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
    return int(config.max_position_embeddings)


def check_request(request: GenerationRequest, max_model_len: int) -> None:
    """Raise PromptTooLongError or ValueError for a request that cannot be sampled."""
    if not request.prompt_ids:
        raise ValueError("cannot sample from an empty prompt: give it at least one token")
    if request.params.max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {request.params.max_tokens}")
    if len(request.prompt_ids) >= max_model_len:
        raise PromptTooLongError(
            f"a prompt of {len(request.prompt_ids)} tokens leaves no room in a context of {max_model_len}: "
            "shorten the prompt or use a model with a longer context"
        )


@contextmanager
def generation_mode(model: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode (which also suspends gradient checkpointing), shared-prefix attention."""
    with evaluation_mode(model), use_shared_prefix_attention(model):
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No gradients, and every module in evaluation mode until the end."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        # Not inference_mode: buffers that a model caches in forward could not be trained with afterwards.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _make_sequences(requests: Sequence[GenerationRequest], limits: Limits) -> list[SequenceState]:
    prompts: dict[tuple[int, ...], Prompt] = {}
    sequences = []
    for index, request in enumerate(requests):
        check_request(request, limits.max_model_len)
        params = request.params
        if params.stop and limits.decode is None:
            raise ValueError("stop strings need `decode`, a function from ids to text")
        prompt = prompts.setdefault(tuple(request.prompt_ids), Prompt(request.prompt_ids))
        prompt.unfinished += 1
        max_tokens = min(params.max_tokens, limits.max_model_len - len(prompt.ids))
        seed = params.seed if params.seed is not None else int(torch.randint(2**62, ()).item())
        sequences.append(SequenceState(index, prompt, params, max_tokens, UniformStream(seed)))
    return sequences


def _result(sequence: SequenceState) -> GenerationResult:
    assert sequence.finish_reason is not None
    return GenerationResult(sequence.tokens, sequence.logprobs, sequence.finish_reason)
