"""How many rollouts may be in flight: a semaphore that counts rollouts and is taken by whole groups."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class RolloutSlots:
    """Slots for rollouts, given to groups in the order in which they ask.

    A group gets all of its slots at once: half-started groups would hold slots for nothing. One that is larger
    than the whole runs alone.

    Args:
        capacity: rollouts in flight at once.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = max(1, capacity)
        self._free = self._capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, num_rollouts: int) -> AsyncIterator[None]:
        """Hold the slots of a group of `num_rollouts`; waits for them."""
        count = min(num_rollouts, self._capacity)
        await self._take(count)
        try:
            yield
        finally:
            self._give_back(count)

    async def _take(self, count: int) -> None:
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            was_admitted = not turn.cancelled()
            self._give_back(count if was_admitted else 0)
            raise

    def _give_back(self, count: int) -> None:
        self._free += count
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()
