"""`RolloutEngine`: prompts in, scored groups out, from any Verifiers environment and any sampler.

Rollouts run on an event loop in a thread of its own, so that they go on while the trainer trains.
A rollout that could not be generated for a reason outside the policy is tried again; if it keeps failing it
stays in its group with `reward=None`, is counted, and is never trained on as a wrong answer. So is a completion
that could not be scored, at once: to sample another in its place would prefer completions that score easily.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, runtime_checkable

import verifiers as vf

from grpo_gym.inference.sampler import Sampler, SamplingParams
from grpo_gym.rewards.correctness import score_in_workers
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.convert import PROMPT_TOO_LONG, SCORING_FAILED, messages_text, rollout_from_output
from grpo_gym.rollouts.prompts import Row
from grpo_gym.rollouts.scoring import SCORER_ERROR_KEY, record_scorer_errors
from grpo_gym.rollouts.slots import RolloutSlots
from grpo_gym.rollouts.token_client import TokenClient, mix_seed
from grpo_gym.rollouts.types import Rollout, RolloutGroup

T = TypeVar("T")
_CLOSE_SECONDS = 60.0
"""A batch of the in-process sampler that is being generated is waited for."""


@runtime_checkable
class CountsRollouts(Protocol):
    """A sampler that batches: it wants to know how many rollouts may still ask for tokens."""

    def rollout_started(self, n: int = 1) -> None:
        """`n` more rollouts are running."""
        ...

    def rollout_finished(self, n: int = 1) -> None:
        """`n` rollouts will not ask any more."""
        ...


class RolloutEngine:
    """Runs groups of rollouts of one environment.

    Args:
        env: any Verifiers environment (its reward functions are wrapped to tell failures from zeros; those of
            Reasoning Gym tasks move to worker processes).
        sampler: where tokens come from.
        renderer: messages to ids.
        max_retries: how often a rollout that could not be generated is tried again.
        max_concurrent: rollouts in flight at once; a group that is larger runs alone.
    """

    def __init__(
        self,
        env: vf.Environment,
        sampler: Sampler,
        renderer: ChatRenderer,
        max_retries: int = 2,
        max_concurrent: int = 512,
    ) -> None:
        self.env = env
        self.sampler = sampler
        self.renderer = renderer
        self.max_retries = max_retries
        self.failures: Counter[str] = Counter()
        self._counting = sampler if isinstance(sampler, CountsRollouts) else None
        self._slots = RolloutSlots(max_concurrent)
        score_in_workers(env)
        record_scorer_errors(env)
        env._cleanup_handlers.append(self._rollout_ended)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

    def submit(
        self,
        row: Row,
        num_generations: int,
        params: SamplingParams,
        seed: int | None,
        on_start: Callable[[], None] | None = None,
    ) -> Future[RolloutGroup]:
        """Start one group; the future resolves to it. Cancelling the future ends the group's requests.

        `on_start` is called, on the event loop, when the group's turn has come.
        """
        return self.run(self.generate_group(row, num_generations, params, seed, on_start))

    def generate(
        self, rows: Sequence[Row], num_generations: int, params: SamplingParams, seeds: Sequence[int | None]
    ) -> list[RolloutGroup]:
        """Generate and score one group per row, and wait for all of them."""
        return self.run(self._generate_all(rows, num_generations, params, seeds)).result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the engine's event loop.

        Raises:
            RuntimeError: the engine was closed.
        """
        if not self._thread.is_alive():
            coroutine.close()
            raise RuntimeError("the rollout engine is closed.")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel what is in flight, release the sampler and stop the event loop."""
        if not self._thread.is_alive():
            return
        if self._rollout_ended in self.env._cleanup_handlers:
            self.env._cleanup_handlers.remove(self._rollout_ended)
        try:
            self.run(self._shut_down()).result(timeout=_CLOSE_SECONDS)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=_CLOSE_SECONDS)
            if not self._thread.is_alive():  # a loop that still runs cannot be closed
                self._loop.close()

    async def generate_group(
        self,
        row: Row,
        num_generations: int,
        params: SamplingParams,
        seed: int | None,
        on_start: Callable[[], None] | None = None,
    ) -> RolloutGroup:
        """One group of `num_generations` scored rollouts of `row`."""
        async with self._slots.taken(num_generations):
            if on_start is not None:
                on_start()
            rollouts = await self._attempt(row, num_generations, params, seed)
            for retry in range(1, self.max_retries + 1):
                failed = [i for i, r in enumerate(rollouts) if _worth_retrying(r)]
                if not failed:
                    break
                rollouts = await self._retry(row, rollouts, failed, params, _retry_seed(seed, retry))
        self.failures.update(r.error for r in rollouts if r.error)
        return RolloutGroup(
            example_id=row["example_id"],
            task=task_name(row, self.env),
            prompt_text=messages_text(row["prompt"]),
            answer=str(row.get("answer", "")),
            rollouts=rollouts,
        )

    async def _generate_all(
        self, rows: Sequence[Row], num_generations: int, params: SamplingParams, seeds: Sequence[int | None]
    ) -> list[RolloutGroup]:
        tasks = [
            self.generate_group(row, num_generations, params, seed)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        # All rollouts of a wave are announced before the first one asks for tokens, so that an in-process
        # sampler sees the whole batch.
        return list(await asyncio.gather(*tasks))

    async def _attempt(self, row: Row, count: int, params: SamplingParams, seed: int | None) -> list[Rollout]:
        client = TokenClient(self.sampler, self.renderer, params, seed)
        inputs = [dict(row) for _ in range(count)]
        client.num_running = count
        if self._counting:
            self._counting.rollout_started(count)
        try:
            outputs = await self.env.run_group(
                inputs,
                client=client,
                model="policy",
                sampling_args={},
                state_columns=["trajectory", SCORER_ERROR_KEY],
            )
        finally:
            if self._counting and client.num_running:
                self._counting.rollout_finished(client.num_running)
        version = client.min_policy_version or 0
        return [rollout_from_output(output, version) for output in outputs]

    async def _rollout_ended(self, state: vf.State) -> None:
        """Verifiers' clean-up hook of each rollout: one conversation less that may ask for tokens."""
        client = state["client"]
        is_ours = isinstance(client, TokenClient) and client.client is self.sampler
        if self._counting and is_ours and client.num_running:
            client.num_running -= 1
            self._counting.rollout_finished()

    async def _retry(
        self, row: Row, rollouts: list[Rollout], failed: list[int], params: SamplingParams, seed: int | None
    ) -> list[Rollout]:
        """The rollouts with the failed ones replaced; all of them anew where rewards compare the group."""
        if self.env.requires_group_rollouts:
            return await self._attempt(row, len(rollouts), params, seed)
        fresh = await self._attempt(row, len(failed), params, seed)
        replacement = dict(zip(failed, fresh, strict=True))
        return [replacement.get(i, rollout) for i, rollout in enumerate(rollouts)]

    async def _shut_down(self) -> None:
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.sampler.close()


def task_name(row: Row, env: vf.Environment) -> str:
    """The task a row belongs to: Reasoning Gym's `source_dataset`, else the environment's id."""
    info = row.get("info")
    if isinstance(info, dict) and info.get("source_dataset"):
        return str(info["source_dataset"])
    return env.env_id or type(env).__name__


def _worth_retrying(rollout: Rollout) -> bool:
    """Whether generation failed. What was sampled stays, scored or not: another sample would bias the rewards."""
    return rollout.error is not None and not rollout.error.startswith((PROMPT_TOO_LONG, SCORING_FAILED))


def _retry_seed(seed: int | None, retry: int) -> int | None:
    return None if seed is None else mix_seed(seed, -retry)
