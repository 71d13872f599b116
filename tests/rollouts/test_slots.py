"""Slots for rollouts: whole groups, in order, none lost."""

import asyncio

from grpo_gym.rollouts.slots import RolloutSlots


class Groups:
    """Groups that hold their slots until told."""

    def __init__(self, capacity):
        self.slots, self.running, self.events, self.tasks = RolloutSlots(capacity), [], {}, {}

    async def start(self, name, size):
        self.events[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, size))
        await asyncio.sleep(0)

    async def finish(self, name):
        self.events[name].set()
        await asyncio.sleep(0.01)

    async def cancel(self, *names):
        for name in names:
            self.tasks[name].cancel()
        await asyncio.sleep(0.01)

    async def _run(self, name, size):
        async with self.slots.taken(size):
            self.running.append(name)
            try:
                await self.events[name].wait()
            finally:
                self.running.remove(name)


def test_a_large_group_is_not_overtaken_by_small_ones():
    async def scenario():
        groups = Groups(8)
        for name, size in (("a", 4), ("b", 8), ("c", 1)):
            await groups.start(name, size)
        assert groups.running == ["a"]
        await groups.finish("a")
        assert groups.running == ["b"]
        await groups.finish("b")
        assert groups.running == ["c"]
        await groups.finish("c")

    asyncio.run(scenario())


def test_a_group_larger_than_all_slots_runs_alone():
    async def scenario():
        groups = Groups(4)
        for name, size in (("a", 16), ("b", 1)):
            await groups.start(name, size)
        assert groups.running == ["a"]
        await groups.finish("a")
        assert groups.running == ["b"]

    asyncio.run(scenario())


def test_cancelled_groups_give_back_what_they_held_and_let_others_by():
    async def scenario():
        groups = Groups(4)
        for name, size in (("a", 3), ("b", 4), ("c", 1), ("d", 4)):
            await groups.start(name, size)
        await groups.cancel("b")  # it waited in front of c
        assert groups.running == ["a", "c"]
        await groups.cancel("a", "c")
        assert groups.running == ["d"]
        await groups.finish("d")

    asyncio.run(scenario())


def test_a_group_cancelled_in_the_moment_it_is_admitted_loses_no_slot():
    async def scenario():
        groups = Groups(4)
        for name in "abc":
            await groups.start(name, 4)
        groups.slots._give_back(4)  # b has its turn, but has not run yet
        await groups.cancel("b")
        assert groups.running == ["a", "c"]

    asyncio.run(scenario())
