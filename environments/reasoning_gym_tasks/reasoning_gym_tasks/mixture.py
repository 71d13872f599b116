"""A split: entries of one or more tasks, made when asked for, the same for the same seed and index.

Tasks with several levels get harder along the split, which is a curriculum when the split is not shuffled.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import random
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset

from reasoning_gym_tasks.entries import Entry
from reasoning_gym_tasks.tasks import TaskSpec

Split = Literal["train", "eval"]

MAX_ROWS = 2**30
# A task's rows come from Reasoning Gym datasets of a fixed size ("blocks"), so that row i never depends on
# how many rows there are. acre generates a whole block when it is constructed (0.2 s for 500); word_ladder
# refuses more than 20,000.
_BLOCK_SIZE = 100_000
_BLOCK_SIZES = {"acre": 500, "word_ladder": 10_000}
_MAX_OPEN_BLOCKS = 32
_MAX_ATTEMPTS = 16
# Prime to every block size, and no neighbour of the entry.
_RETRY_STRIDE = 4099
# Tasks that draw from (list_functions) or reseed (pool_matrix) the process-wide generators.
_GLOBAL_RNG_TASKS = frozenset({"list_functions", "pool_matrix"})


def split_seed(seed: int, split: Split) -> int:
    """The first of the split's entry seeds, an int below 2**32.

    Reasoning Gym seeds entry i with `seed + i`, so neighbouring seeds share nearly all entries. Seeds are
    therefore hashed apart, and the two splits live in disjoint halves of the 32-bit range.
    """
    digest = hashlib.sha256(f"{split}/{seed}".encode()).digest()
    offset = int.from_bytes(digest[:8], "big") % MAX_ROWS
    return offset if split == "train" else 2**31 + offset


class TaskMixture:
    """`num_rows` entries; entry i belongs to one task, drawn by weight, and costs nothing until asked for.

    Safe to use from several threads; one entry is generated at a time.

    Args:
        specs: the tasks.
        seed: see `split_seed`.
        num_rows: number of entries.
        cache_size: how many generated entries are kept.
    """

    def __init__(self, specs: Sequence[TaskSpec], seed: int, num_rows: int, cache_size: int = 4096) -> None:
        self.specs = tuple(specs)
        self.seed = seed
        self._num_rows = num_rows
        self._cache_size = cache_size
        self._stages = [spec.stages() for spec in self.specs]
        self._cumulative_weights = list(itertools.accumulate(spec.weight for spec in self.specs))
        self._blocks: OrderedDict[tuple[int, int, int], ProceduralDataset] = OrderedDict()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Entry:
        """Entry `index`: `question`, `answer` and `metadata`.

        Raises:
            IndexError: no such entry.
        """
        if not 0 <= index < self._num_rows:
            raise IndexError(f"row {index} of {self._num_rows}")
        with self._lock:
            if index not in self._entries:
                self._entries[index] = self._generate(index)
                _trim(self._entries, self._cache_size)
            self._entries.move_to_end(index)
            return self._entries[index]

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(self._num_rows))

    def put(self, index: int, entry: Entry) -> None:
        """Keep `entry` as entry `index`, as if it had been generated here."""
        with self._lock:
            self._entries[index] = entry

    def member_at(self, index: int) -> int:
        """Which of the specs entry `index` belongs to; from the seed and index alone."""
        if len(self.specs) == 1:
            return 0
        draw = random.Random(f"{self.seed}/{index}").random() * self._cumulative_weights[-1]
        return min(bisect.bisect(self._cumulative_weights, draw), len(self.specs) - 1)

    def spec_at(self, index: int) -> TaskSpec:
        """The task that entry `index` belongs to."""
        return self.specs[self.member_at(index)]

    def stage_at(self, index: int) -> int:
        """How far entry `index` is through the levels of its task; 0 for a task with one."""
        return index * len(self._stages[self.member_at(index)]) // self._num_rows

    def scorer_at(self, index: int) -> ProceduralDataset:
        """A Reasoning Gym dataset with the settings of entry `index`, for its `score_answer`."""
        with self._lock:
            return self._block(self.member_at(index), self.stage_at(index), 0)

    def score_answer(self, answer: str | None, entry: Entry) -> float:
        """Reasoning Gym's own score of an answer to one of this split's entries, as in its datasets."""
        member = next(
            i for i, spec in enumerate(self.specs) if spec.name == entry["metadata"]["source_dataset"]
        )
        with self._lock:
            dataset = self._block(member, 0, 0)
        return float(dataset.score_answer(answer, entry))

    def _generate(self, index: int) -> Entry:
        member = self.member_at(index)
        name = self.specs[member].name
        block, offset = divmod(index, _block_size(name))
        dataset = self._block(member, self.stage_at(index), block)
        with _seeded_globals(self.seed + index) if name in _GLOBAL_RNG_TASKS else contextlib.nullcontext():
            return _entry(dataset, offset, name)

    def _block(self, member: int, stage: int, block: int) -> ProceduralDataset:
        key = (member, stage, block)
        if key not in self._blocks:
            spec = self.specs[member]
            size = _block_size(spec.name)
            self._blocks[key] = reasoning_gym.create_dataset(
                spec.name, **self._stages[member][stage], size=size, seed=self.seed + block * size
            )
            _trim(self._blocks, _MAX_OPEN_BLOCKS)
        self._blocks.move_to_end(key)
        return self._blocks[key]


def _entry(dataset: ProceduralDataset, offset: int, task: str) -> Entry:
    """Entry `offset`, or where the task's generator gives up on it (countdown and codeio do at times) one far from it.

    Raises:
        RuntimeError: the generator gives up again and again.
    """
    for attempt in range(_MAX_ATTEMPTS):
        try:
            return dataset[(offset + attempt * _RETRY_STRIDE) % len(dataset)]
        except (ValueError, RuntimeError, TypeError) as error:
            # TypeError: codeio cannot write some of its own results as JSON.
            last = error
    raise RuntimeError(
        f"Reasoning Gym task '{task}' could not make entry {offset}, nor {_MAX_ATTEMPTS - 1} others instead "
        f"({last}); change its config."
    ) from last


def _block_size(name: str) -> int:
    return _BLOCK_SIZES.get(name, _BLOCK_SIZE)


def _trim(cache: OrderedDict, size: int) -> None:
    while len(cache) > size:
        cache.popitem(last=False)


@contextlib.contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Seed the process-wide generators, and leave them as they were found."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
