"""`LocalSampler`: the in-process generator behind the same interface as a server.

Requests are gathered until every running rollout waits for tokens, then generated as one batch in a worker
thread, so that the event loop stays free for scoring. One batch runs at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_gym.inference.generator import GenerationRequest, GenerationResult, check_request, generate
from grpo_gym.inference.sampler import ImagePrompt, InferenceError, SampleResult, SamplingParams


@dataclass(eq=False)
class _Waiting:
    request: GenerationRequest
    arrival: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[SampleResult]


class LocalSampler:
    """Samples with a transformers model in this process.

    A caller that announces its rollouts (`rollout_started`, `rollout_finished`) gets full batches, the same
    in every run: a batch starts when as many requests wait as rollouts run. Without announcements a batch
    starts when no request came for `gather_seconds`.

    While a batch runs the model must not be used otherwise. `policy_version` is stamped on every sample of
    the batches that start after it was set.

    Args:
        model_provider: returns the model to sample from, asked at the start of every batch.
        tokenizer: only its `decode` (for stop strings) and `eos_token_id` are used.
        max_model_len: longest prompt + completion, in tokens.
        eos_token_ids: ids that end a completion; default the tokenizer's.
        seed: from which requests without a seed get theirs.
        max_batch_size: most sequences computed together.
        max_batch_tokens: most tokens cached together.
        gather_seconds: how long a batch must have been complete before it starts.
        generate_batch: makes the tokens of a batch; default `inference.generator.generate`.
    """

    def __init__(
        self,
        model_provider: Callable[[], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        max_model_len: int,
        eos_token_ids: Set[int] | None = None,
        seed: int = 0,
        max_batch_size: int = 256,
        max_batch_tokens: int = 131_072,
        gather_seconds: float = 0.003,
        generate_batch: Callable[..., list[GenerationResult]] | None = None,
    ) -> None:
        self.policy_version = 0
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset(eos_token_ids) if eos_token_ids else _default_eos(tokenizer)
        self._model_provider = model_provider
        self._tokenizer = tokenizer
        self._max_batch_size, self._max_batch_tokens = max_batch_size, max_batch_tokens
        self._gather_seconds = gather_seconds
        self._generate_batch = generate_batch
        self._seeds = torch.Generator().manual_seed(seed)
        self._arrivals = itertools.count()
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._running = 0
        self._last_event = 0
        self._closed = False
        # One thread for all batches: the model is not shared, and OpenMP keeps a team of threads per thread.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-sampler")

    async def sample(
        self, prompt_ids: list[int], params: SamplingParams, images: ImagePrompt | None = None
    ) -> SampleResult:
        """Sample one completion, in a batch with the requests of the other running rollouts.

        Raises:
            PromptTooLongError: the prompt leaves no room in `max_model_len`.
            InferenceError: the generation of the batch failed (its cause is attached), or `close` was called.
        """
        request = GenerationRequest(list(prompt_ids), params, images)
        check_request(request, self.max_model_len)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, next(self._arrivals), loop, loop.create_future())
        with self._lock:
            if self._closed:
                raise InferenceError("the in-process sampler is closed")
            self._waiting.append(waiting)
        self._something_happened()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._forget(waiting)
            raise

    def rollout_started(self, n: int = 1) -> None:
        """`n` more rollouts are running and may ask for tokens (announce a wave before it starts)."""
        with self._lock:
            self._running += n
        self._something_happened()

    def rollout_finished(self, n: int = 1) -> None:
        """`n` rollouts will not ask for tokens any more."""
        with self._lock:
            if n > self._running:
                raise ValueError(f"{n} rollouts finished, but only {self._running} are running")
            self._running -= n
        self._something_happened()

    async def close(self) -> None:
        """Fail the requests that wait, let a running batch finish and end the worker thread."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        _deliver(waiting, [InferenceError("the in-process sampler was closed") for _ in waiting])
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)

    def _something_happened(self) -> None:
        """Look whether the batch is complete, once nothing has happened for `gather_seconds`."""
        with self._lock:
            self._last_event += 1
            event, loop = self._last_event, self._waiting[0].loop if self._waiting else None
        if loop is not None:
            loop.call_soon_threadsafe(loop.call_later, self._gather_seconds, self._start_if_complete, event)

    def _start_if_complete(self, event: int) -> None:
        with self._lock:
            if event != self._last_event or self._closed or len(self._waiting) < max(self._running, 1):
                return
            batch, self._waiting = self._waiting, []
            self._worker.submit(self._run, batch)

    def _forget(self, waiting: _Waiting) -> None:
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        self._something_happened()

    def _run(self, batch: list[_Waiting]) -> None:
        """Generate a batch in the worker thread; whatever goes wrong reaches everyone who waits."""
        batch = sorted(batch, key=_order)
        version = self.policy_version
        outcomes: list[SampleResult | InferenceError]
        try:
            outcomes = [_sample_result(result, version) for result in self._generate(batch)]
        except Exception as error:
            outcomes = [_failure(error) for _ in batch]
        _deliver(batch, outcomes)

    def _generate(self, batch: list[_Waiting]) -> list[GenerationResult]:
        return (self._generate_batch or generate)(
            self._model_provider(),
            [self._seeded(waiting.request) for waiting in batch],
            eos_token_ids=self.eos_token_ids,
            max_model_len=self.max_model_len,
            max_batch_size=self._max_batch_size,
            max_batch_tokens=self._max_batch_tokens,
            decode=self._decode,
        )

    def _seeded(self, request: GenerationRequest) -> GenerationRequest:
        if request.params.seed is not None:
            return request
        seed = int(torch.randint(2**62, (), generator=self._seeds).item())
        return replace(request, params=replace(request.params, seed=seed))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))


def _order(waiting: _Waiting) -> tuple[bool, int, int]:
    # Seeded requests are ordered by seed: the batch is then the same whichever tool or scorer was faster.
    seed = waiting.request.params.seed
    return seed is None, seed or 0, waiting.arrival


def _deliver(batch: list[_Waiting], outcomes: list[SampleResult | InferenceError]) -> None:
    """Hand each outcome to the event loop that waits for it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, SampleResult | InferenceError]]] = {}
    for waiting, outcome in zip(batch, outcomes, strict=True):
        by_loop.setdefault(waiting.loop, []).append((waiting, outcome))
    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, sorted(pairs, key=lambda pair: pair[0].arrival))


def _resolve(pairs: list[tuple[_Waiting, SampleResult | InferenceError]]) -> None:
    for waiting, outcome in pairs:
        if waiting.future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, InferenceError):
            waiting.future.set_exception(outcome)
        else:
            waiting.future.set_result(outcome)


def _sample_result(result: GenerationResult, version: int) -> SampleResult:
    return SampleResult(result.completion_ids, result.logprobs, result.finish_reason, version)


def _failure(error: Exception) -> InferenceError:
    failure = InferenceError(f"in-process generation failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _default_eos(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token: pass eos_token_ids")
    return frozenset([int(tokenizer.eos_token_id)])
