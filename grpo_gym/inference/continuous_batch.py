"""The state of a running generation: which sequences run in which rows, and one step of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from grpo_gym.inference.kv_cache import Prefill, RowLayout, SharedPrefixCache, StepPlan
from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.inference.shared_prefix_attention import check_every_layer_cached
from grpo_gym.inference.token_sampling import RowSettings, processed_log_probs, sample_tokens
from grpo_gym.rollouts.types import FinishReason

Decode = Callable[[list[int]], str]
T = TypeVar("T")

# Prompt tokens computed in one step: bounds the activations, not the batch.
MAX_PREFILL_TOKENS = 4096


@dataclass(frozen=True)
class Limits:
    """What ends a completion and what bounds a batch.

    `max_batch_tokens` bounds the cached tokens (prompts once per group, completions at their full allowance).
    """

    eos_token_ids: Set[int]
    max_model_len: int
    max_batch_size: int
    max_batch_tokens: int
    decode: Decode | None


class UniformStream:
    """The uniform numbers of one request: number t depends on the seed and t only (Philox, counter-based)."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        while index >= len(self._numbers):
            self._numbers.extend(self._generator.random(64).tolist())
        return self._numbers[index]


@dataclass
class Prompt:
    """One different prompt and the sequences that continue it."""

    ids: list[int]
    unfinished: int = 0
    slot: int | None = None
    logits: Tensor | None = None  # [vocab_size] after the last prompt token, while sequences wait to join


@dataclass
class SequenceState:
    """One completion being sampled."""

    index: int
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    uniforms: UniformStream
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached: int = 0

    def append(self, token: int, logprob: float, limits: Limits) -> None:
        """Take one sampled token and see whether the completion ends with it; ignored after the end."""
        if self.finish_reason is not None:
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in limits.eos_token_ids or (self.params.stop and self._hits_stop_string(limits.decode)):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def _hits_stop_string(self, decode: Decode | None) -> bool:
        assert decode is not None
        # Enough tokens to hold a stop string that ends in the newest one: a token is mostly a byte or more.
        reach = 2 * max(len(stop.encode()) for stop in self.params.stop) + 8
        tail = decode(self.tokens[-reach:])
        return any(stop in tail for stop in self.params.stop)


class ContinuousBatch:
    """The sequences that are running, row by row, and those that wait.

    Row i of the cache belongs to `self.running[i]`, slot j to `self.prompts[j]`; both lists stay dense.
    """

    def __init__(self, model: nn.Module, sequences: list[SequenceState], limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.waiting = deque(sorted(sequences, key=_first_index_of_prompt(sequences)))
        self.running: list[SequenceState] = []
        self.prompts: list[Prompt] = []
        prompts = {id(s.prompt): len(s.prompt.ids) for s in sequences}
        longest_prompt = max(prompts.values(), default=1)
        longest_completion = max((s.max_tokens for s in sequences), default=1)
        self.max_rows = max_rows(len(sequences), len(prompts), longest_prompt, longest_completion, limits)
        self.cache = SharedPrefixCache(min(self.max_rows, len(prompts)), longest_prompt)
        self.device = next(model.parameters()).device
        self._layout: RowLayout | None = None
        self._settings: RowSettings | None = None

    def run(self) -> None:
        """Step until every sequence is finished."""
        while self.running or self.waiting:
            self.step()

    def step(self) -> None:
        """Admit, compute, sample one token for every running sequence, retire."""
        decoding = list(self.running)
        admitted, new_prompts = self._admit()
        self.running += admitted
        decode_logits = self._forward(decoding, new_prompts)
        logits = self._logits(decode_logits, admitted)
        if admitted:
            self._layout = self._settings = None
        self._sample(logits)
        self._retire()

    def _admit(self) -> tuple[list[SequenceState], list[Prompt]]:
        """Take sequences from the queue while they fit; their prompts get slots."""
        admitted: list[SequenceState] = []
        new_prompts: list[Prompt] = []
        prefill_tokens = 0
        while self.waiting and len(self.running) + len(admitted) < self.max_rows:
            prompt = self.waiting[0].prompt
            if prompt.slot is None:
                prefill_tokens += len(prompt.ids)
                if new_prompts and prefill_tokens > MAX_PREFILL_TOKENS:
                    break
                prompt.slot = len(self.prompts)
                self.prompts.append(prompt)
                new_prompts.append(prompt)
            admitted.append(self.waiting.popleft())
        return admitted, new_prompts

    def _forward(self, decoding: list[SequenceState], new_prompts: list[Prompt]) -> Tensor:
        """Logits [len(decoding), vocab_size] of one forward pass; new prompts keep theirs themselves."""
        ids = [s.tokens[-1] for s in decoding]
        positions = [len(s.prompt.ids) + len(s.tokens) - 1 for s in decoding]
        keep, prefills = list(range(len(decoding))), []
        for prompt in new_prompts:
            assert prompt.slot is not None
            prefills.append(Prefill(len(ids), len(prompt.ids), prompt.slot))
            ids += prompt.ids
            positions += range(len(prompt.ids))
            keep.append(len(ids) - 1)
        if not ids:
            return torch.empty(0, device=self.device)
        capacity = self.max_rows if self.waiting else len(self.running)
        self.cache.plan = StepPlan(
            [s.cached for s in decoding], self._row_layout(decoding), prefills, capacity
        )
        logits = self._logits_at(ids, positions, keep)
        for sequence in decoding:
            sequence.cached += 1
        for prompt, row in zip(new_prompts, logits[len(decoding) :], strict=True):
            prompt.logits = row
        return logits[: len(decoding)]

    def _logits_at(self, ids: list[int], positions: list[int], keep: list[int]) -> Tensor:
        """Logits [len(keep), vocab_size] of the packed tokens, float32 or wider."""
        output = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(keep, device=self.device),
            kv_cache=self.cache,
        )
        check_every_layer_cached(self.cache, _num_layers(self.model), type(self.model).__name__)
        logits: Tensor = output.logits[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _logits(self, decode_logits: Tensor, admitted: list[SequenceState]) -> Tensor:
        """The decode logits followed by those of the prompts of `admitted`, one row per sequence."""
        if not admitted:
            return decode_logits
        first = torch.stack([_prompt_logits(s.prompt) for s in admitted])
        next_prompt = self.waiting[0].prompt if self.waiting else None
        for prompt in {id(s.prompt): s.prompt for s in admitted}.values():
            # A copy, so that the logits of a whole step are not kept alive by one row.
            prompt.logits = _prompt_logits(prompt).clone() if prompt is next_prompt else None
        return torch.cat([decode_logits, first]) if len(decode_logits) else first

    def _sample(self, logits: Tensor) -> None:
        params = [s.params for s in self.running]
        if self._settings is None:
            self._settings = RowSettings.build(params, logits.shape[-1], logits)
        seen = None
        if self._settings.repetition_penalty is not None:
            seen = [s.prompt.ids + s.tokens for s in self.running]
        log_probs = processed_log_probs(logits, self._settings, seen)
        uniforms = torch.tensor([s.uniforms[len(s.tokens)] for s in self.running], dtype=torch.float64)
        tokens = sample_tokens(log_probs, uniforms.to(logits.device), self._settings.greedy)
        chosen = log_probs.gather(1, tokens[:, None])[:, 0]
        for sequence, token, logprob in zip(self.running, tokens.tolist(), chosen.tolist(), strict=True):
            sequence.append(token, logprob, self.limits)

    def _retire(self) -> None:
        """Drop finished sequences, and prompts that nobody continues; the last ones move into the gaps.

        Not at every end: moving costs more than to compute a few idle rows for a few steps.
        """
        finished = [s for s in self.running if s.finish_reason is not None]
        if len(finished) < max(1, len(self.running) // 16):
            return
        self._layout = self._settings = None
        for sequence in finished:
            sequence.prompt.unfinished -= 1
        self.cache.move_rows(*_close_gaps(self.running, lambda s: s.finish_reason is not None), self.device)
        sources, destinations = _close_gaps(self.prompts, lambda p: p.unfinished == 0)
        self.cache.move_slots(sources, destinations, self.device)
        for slot, prompt in enumerate(self.prompts):
            prompt.slot = slot

    def _row_layout(self, decoding: list[SequenceState]) -> RowLayout | None:
        if self._layout is None and decoding:
            slots = [_slot(s.prompt) for s in decoding]
            self._layout = RowLayout.build(slots, [len(s.prompt.ids) for s in decoding], self.device)
        return self._layout


def max_rows(
    num_sequences: int, num_prompts: int, longest_prompt: int, longest_completion: int, limits: Limits
) -> int:
    """How many sequences may run at once: the cache's rectangles keep to `max_batch_tokens`."""
    most = min(num_sequences, limits.max_batch_size)
    for rows in range(most, 1, -1):
        if rows * longest_completion + min(rows, num_prompts) * longest_prompt <= limits.max_batch_tokens:
            return rows
    return 1


def _first_index_of_prompt(sequences: list[SequenceState]) -> Callable[[SequenceState], int]:
    """A sort key that brings the sequences of one prompt together, prompts in order of appearance."""
    first: dict[int, int] = {}
    for sequence in sequences:
        first.setdefault(id(sequence.prompt), sequence.index)
    return lambda sequence: first[id(sequence.prompt)]


def _close_gaps(items: list[T], is_gone: Callable[[T], bool]) -> tuple[list[int], list[int]]:
    """Remove items in place, moving the last ones into the gaps; returns where from and where to."""
    kept = [i for i, item in enumerate(items) if not is_gone(item)]
    gaps = [i for i in range(len(kept)) if is_gone(items[i])]
    sources = [i for i in kept if i >= len(kept)]
    for source, destination in zip(sources, gaps, strict=True):
        items[destination] = items[source]
    del items[len(kept) :]
    return sources, gaps


def _prompt_logits(prompt: Prompt) -> Tensor:
    assert prompt.logits is not None
    return prompt.logits


def _slot(prompt: Prompt) -> int:
    assert prompt.slot is not None
    return prompt.slot


def _num_layers(model: nn.Module) -> int:
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
    return int(config.num_hidden_layers)
