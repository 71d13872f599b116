"""Rollouts of the next steps while this one trains.

Groups are in flight all the time. A step takes the first ones that are finished, so it never waits for the
slowest; a group whose policy is more than `max_staleness` steps old is dropped, counted, and its prompt used
again; one that can only become too old is stopped. What a somewhat older policy sampled is corrected by the
importance weights of `mismatch.py`.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.prompts import PromptStream, Row
from grpo_gym.rollouts.source import (
    RolloutSource,
    SourceSettings,
    StepRollouts,
    check_some_rollout_is_valid,
    policy_ages,
    spread_by_task,
)
from grpo_gym.rollouts.types import RolloutGroup


@dataclass(slots=True)
class _Flight:
    """A group in flight: its ticket, and the policy version that began it (None while it waits for its turn)."""

    ticket: int
    version: int | None = None


class OverlappedSource(RolloutSource):
    """Keeps groups in flight between steps; needs a sampler outside of the trainer's process.

    With N prompts per step and staleness S, up to N (S + 1) groups are outstanding while a step is waited
    for, and N S while it trains: started in step t, the last of them is due in step t + S.
    """

    def __init__(self, engine: RolloutEngine, stream: PromptStream, settings: SourceSettings) -> None:
        super().__init__(engine, stream, settings)
        self._in_flight: dict[Future[RolloutGroup], _Flight] = {}
        self._finished: deque[tuple[int, RolloutGroup]] = deque()
        self._again: deque[int] = deque()

    def next_step(self, version: int) -> StepRollouts:
        """The first finished groups that are fresh enough; more are started before it returns."""
        start = time.perf_counter()
        wanted = self.settings.prompts_per_step
        kept: dict[int, RolloutGroup] = {}
        spare: list[RolloutGroup] = []
        num_stale = self._stop_late_groups(version)
        while len(kept) < wanted:
            self._start_groups(wanted * (self.settings.max_staleness + 1) - len(kept))
            ticket, group = self._next_finished()
            if version - oldest_version(group, version) > self.settings.max_age:
                self._again.append(ticket)
                num_stale += 1
            elif self._is_wanted(group, len(kept) + len(spare)):
                kept[ticket] = group
            else:
                spare.append(group)
        self._start_groups(wanted * self.settings.max_staleness)
        # By ticket, not by who was faster: what is trained on decides the step, the order of its sums does not.
        groups = [kept[ticket] for ticket in sorted(kept)]
        check_some_rollout_is_valid(groups)
        generated = groups + spare
        return StepRollouts(
            groups,
            time.perf_counter() - start,
            num_generated=len(generated) + num_stale,
            num_uninformative=sum(not group.has_spread for group in generated),
            num_stale=num_stale,
            spread=spread_by_task(generated),
            prompt_epochs=self.stream.epochs,
            ages=policy_ages(groups, version, self.settings.versions_per_step),
        )

    def state_dict(self) -> dict[str, Any]:
        """The stream, and the prompts that were drawn but not trained on yet: none is skipped on resume."""
        in_flight = [flight.ticket for flight in self._in_flight.values()]
        unused = sorted([*in_flight, *(ticket for ticket, _ in self._finished), *self._again])
        return {**super().state_dict(), "unused_tickets": unused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; unused prompts come first."""
        super().load_state_dict(state)
        self._again = deque(state.get("unused_tickets", []))

    def _is_wanted(self, group: RolloutGroup, num_taken: int) -> bool:
        return group.has_spread or num_taken >= self.settings.max_generated - self.settings.prompts_per_step

    def _start_groups(self, outstanding: int) -> None:
        """Start groups until this many are in flight or finished."""
        while len(self._in_flight) + len(self._finished) < outstanding:
            ticket, row = self._next_prompt()
            flight = _Flight(ticket)
            future = self.engine.submit(
                row,
                self.settings.num_generations,
                self.settings.params,
                self._seed(ticket),
                on_start=partial(self._note_start, flight),
            )
            self._in_flight[future] = flight

    def _note_start(self, flight: _Flight) -> None:
        flight.version = self.engine.sampler.policy_version

    def _stop_late_groups(self, version: int) -> int:
        """Stop groups that would be too old whenever they end; the server works for others instead.

        Returns:
            How many; their prompts are used again.
        """
        late = [
            future
            for future, flight in self._in_flight.items()
            if flight.version is not None
            and version - flight.version > self.settings.max_age
            and future.cancel()  # False for one that has just finished
        ]
        tickets = sorted(self._in_flight.pop(future).ticket for future in late)
        self._again.extend(tickets)
        return len(tickets)

    def _next_prompt(self) -> tuple[int, Row]:
        if self._again:
            ticket = self._again.popleft()
            return ticket, self.stream.row_at(ticket)
        return next(self.stream)

    def _next_finished(self) -> tuple[int, RolloutGroup]:
        """The next finished group; an exception of its rollouts is raised here."""
        if not self._finished:
            done, _ = wait(self._in_flight, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: self._in_flight[future].ticket):
                self._finished.append((self._in_flight.pop(future).ticket, future.result()))
        return self._finished.popleft()


def oldest_version(group: RolloutGroup, current: int) -> int:
    """The oldest policy version in the group; `current` for a group in which every rollout failed.

    Such a group is kept: made again it would only fail again, and the step has to notice.
    """
    return min((rollout.policy_version for rollout in group.valid_rollouts), default=current)
