"""In-process generation for vision-language models.

Prompts of the same length are computed together and without padding, each picture once per prompt; then all
their completions advance in step, one token per forward pass. Rows never differ in length, so no model needs
a padding mask, and multimodal rotary positions are one number per row. For CPU and debugging; on a GPU use
vLLM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from grpo_gym.inference.continuous_batch import Decode, Limits, Prompt, SequenceState, UniformStream
from grpo_gym.inference.generator import (
    GenerationRequest,
    GenerationResult,
    check_request,
    evaluation_mode,
)
from grpo_gym.inference.token_sampling import RowSettings, processed_log_probs, sample_tokens
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.vision.model_inputs import concatenate_pixels, token_types
from grpo_gym.vision.renderer import ImageChatRenderer

Urls = tuple[str, ...]


def generate_with_images(
    model: nn.Module,
    requests: Sequence[GenerationRequest],
    *,
    renderer: ImageChatRenderer,
    eos_token_ids: Set[int],
    max_model_len: int,
    max_batch_size: int = 256,
    max_batch_tokens: int = 131_072,
    decode: Decode | None = None,
) -> list[GenerationResult]:
    """Sample one completion per request; `inference.generator.generate` for prompts with images.

    Args:
        model: a vision-language model, unsharded.
        requests: in any order; results come in the same order.
        renderer: turns the pictures into pixels.
        eos_token_ids: ids that end a completion (included in it).
        max_model_len: longest prompt + completion.
        max_batch_size: most sequences computed together.
        max_batch_tokens: most tokens cached together; one sequence is always allowed.
        decode: ids to text; needed when a request has stop strings.

    Raises:
        PromptTooLongError: a prompt leaves no room for one token.
        ValueError: an empty prompt, `max_tokens` below 1, or stop strings without `decode`.
    """
    limits = Limits(eos_token_ids, max_model_len, max_batch_size, max_batch_tokens, decode)
    sequences = [_sequence(index, request, limits) for index, request in enumerate(requests)]
    with evaluation_mode(model):
        for batch in _batches(requests, sequences, limits):
            urls = [_urls(requests[s.index]) for s in batch]
            _LockstepBatch(model, renderer, batch, urls, limits).run()
    return [_result(sequence) for sequence in sequences]


def generator_for(renderer: ChatRenderer) -> Callable[..., list[GenerationResult]] | None:
    """What makes the tokens of a batch in this process; None for text models, which have their own generator."""
    if isinstance(renderer, ImageChatRenderer):
        return functools.partial(generate_with_images, renderer=renderer)
    return None


def _urls(request: GenerationRequest) -> Urls:
    return request.images.urls if request.images else ()


def _sequence(index: int, request: GenerationRequest, limits: Limits) -> SequenceState:
    check_request(request, limits.max_model_len)
    params = request.params
    if params.stop and limits.decode is None:
        raise ValueError("stop strings need `decode`, a function from ids to text")
    seed = params.seed if params.seed is not None else int(torch.randint(2**62, ()).item())
    max_tokens = min(params.max_tokens, limits.max_model_len - len(request.prompt_ids))
    return SequenceState(index, Prompt(request.prompt_ids), params, max_tokens, UniformStream(seed))


def _batches(
    requests: Sequence[GenerationRequest], sequences: Sequence[SequenceState], limits: Limits
) -> Iterator[list[SequenceState]]:
    """Sequences whose prompts have the same length (and either all or none of them images), as many as fit."""
    alike: dict[tuple[int, bool], list[SequenceState]] = {}
    for request, sequence in zip(requests, sequences, strict=True):
        alike.setdefault((len(request.prompt_ids), bool(_urls(request))), []).append(sequence)
    for (length, _), members in alike.items():
        longest = length + max(s.max_tokens for s in members)
        size = max(1, min(limits.max_batch_size, limits.max_batch_tokens // longest))
        for start in range(0, len(members), size):
            yield members[start : start + size]


class _LockstepBatch:
    """Sequences that have the same number of tokens at all times.

    Args:
        model: the model.
        renderer: turns the pictures into pixels.
        sequences: with prompts of equal length.
        urls: the pictures of each sequence.
        limits: what ends a completion.
    """

    def __init__(
        self,
        model: nn.Module,
        renderer: ImageChatRenderer,
        sequences: list[SequenceState],
        urls: list[Urls],
        limits: Limits,
    ) -> None:
        self._model: Any = model
        self._renderer = renderer
        self._limits = limits
        self._running = sequences
        self._device = next(model.parameters()).device
        config: Any = model.config
        self._cache = DynamicCache(config=config.get_text_config(decoder=True))
        self._length = len(sequences[0].prompt.ids)
        # Each different prompt is computed once: ids and pictures make a prompt.
        keys = [(tuple(s.prompt.ids), u) for s, u in zip(sequences, urls, strict=True)]
        self._prompts = list(dict.fromkeys(keys))
        self._row_prompt = [self._prompts.index(key) for key in keys]
        self._deltas: Tensor | None = None

    def run(self) -> None:
        """Sample until every sequence is finished."""
        logits = self._prefill()
        while True:
            self._sample(logits)
            self._drop_finished()
            if not self._running:
                return
            logits = self._step()

    @property
    def _decoder(self) -> Any:
        """The model below its LM head, without adapters' wrappers."""
        get_base_model = getattr(self._model, "get_base_model", None)
        return (get_base_model() if get_base_model else self._model).base_model

    def _prefill(self) -> Tensor:
        """Compute the prompts; logits [rows, vocabulary] of the first token of every sequence."""
        ids = torch.tensor([list(ids) for ids, _ in self._prompts], device=self._device)
        pixels = concatenate_pixels([self._renderer.pixels(urls) for _, urls in self._prompts])
        if hasattr(self._decoder, "rope_deltas"):
            self._decoder.rope_deltas = None  # those of the last batch
        output = self._model(
            input_ids=ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **{name: tensor.to(self._device) for name, tensor in pixels.items()},
            **token_types(self._model.config, ids == self._renderer.image_token_id),
        )
        rows = torch.tensor(self._row_prompt, device=self._device)
        deltas = getattr(self._decoder, "rope_deltas", None)
        self._deltas = None if deltas is None else deltas.reshape(-1)[rows]
        if len(self._row_prompt) != len(self._prompts):
            self._cache.batch_select_indices(rows)
        return _floating(output.logits[:, -1])[rows]

    def _step(self) -> Tensor:
        """Logits [rows, vocabulary] after the newest token of every running sequence."""
        ids = torch.tensor([[s.tokens[-1]] for s in self._running], device=self._device)
        output = self._model(
            input_ids=ids,
            position_ids=self._positions(),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._length += 1
        return _floating(output.logits[:, -1])

    def _positions(self) -> Tensor:
        """[rows, 1], or [3, rows, 1] for multimodal rotary positions: the same number in every dimension."""
        if not hasattr(self._decoder, "rope_deltas"):
            return torch.full((len(self._running), 1), self._length, device=self._device)
        deltas = torch.zeros(len(self._running), dtype=torch.long, device=self._device)
        deltas = deltas if self._deltas is None else self._deltas
        return (deltas + self._length)[None, :, None].expand(3, -1, -1)

    def _sample(self, logits: Tensor) -> None:
        settings = RowSettings.build([s.params for s in self._running], logits.shape[-1], logits)
        seen = None
        if settings.repetition_penalty is not None:
            seen = [s.prompt.ids + s.tokens for s in self._running]
        log_probs = processed_log_probs(logits, settings, seen)
        uniforms = torch.tensor([s.uniforms[len(s.tokens)] for s in self._running], dtype=torch.float64)
        tokens = sample_tokens(log_probs, uniforms.to(logits.device), settings.greedy)
        chosen = log_probs.gather(1, tokens[:, None])[:, 0]
        for sequence, token, logprob in zip(self._running, tokens.tolist(), chosen.tolist(), strict=True):
            sequence.append(token, logprob, self._limits)

    def _drop_finished(self) -> None:
        """Not at every end: moving the cache costs more than a few idle rows for a few steps."""
        kept = [row for row, s in enumerate(self._running) if s.finish_reason is None]
        finished = len(self._running) - len(kept)
        if finished == 0 or (kept and finished < len(self._running) // 8):
            return
        self._running = [self._running[row] for row in kept]
        rows = torch.tensor(kept, dtype=torch.long, device=self._device)
        if kept:
            self._cache.batch_select_indices(rows)
        self._deltas = None if self._deltas is None else self._deltas[rows]


def _floating(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _result(sequence: SequenceState) -> GenerationResult:
    assert sequence.finish_reason is not None
    return GenerationResult(sequence.tokens, sequence.logprobs, sequence.finish_reason)
