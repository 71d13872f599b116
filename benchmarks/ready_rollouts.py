"""Ready-made rollouts: the same token ids, rewards and lengths for both programs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from grpo_gym.rollouts.types import Rollout, RolloutGroup

PROMPT_LENGTHS = (64, 256, 1024)
MEAN_COMPLETIONS = (32, 128, 512)
GROUP_SIZES = (8, 16)


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: prompt tokens, mean completion tokens, completions per prompt."""

    prompt_length: int
    mean_completion: int
    group_size: int

    @property
    def name(self) -> str:
        """For example p256_c64_g8."""
        return f"p{self.prompt_length}_c{self.mean_completion}_g{self.group_size}"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """The cell of a name.

        Raises:
            ValueError: not of the form p256_c64_g8.
        """
        match = re.fullmatch(r"p(\d+)_c(\d+)_g(\d+)", name)
        if not match:
            raise ValueError(f"{name!r} is not a cell: write p256_c64_g8 (prompt, mean completion, group).")
        return cls(*map(int, match.groups()))


BAR_CELL = Cell(256, 64, 8)
GRID = tuple(Cell(p, c, g) for p in PROMPT_LENGTHS for c in MEAN_COMPLETIONS for g in GROUP_SIZES)


def select_cells(text: str) -> list[Cell]:
    """`bar`, `grid`, `all`, or names separated by commas."""
    named = {"bar": [BAR_CELL], "grid": list(GRID), "all": [BAR_CELL, *GRID]}
    return named.get(text) or [Cell.parse(name) for name in text.split(",")]


def completion_lengths(cell: Cell, sigma: float, count: int, rng: np.random.Generator) -> list[int]:
    """Log-normal lengths with mean `cell.mean_completion`, at least 1 and at most 8 times the mean."""
    mu = math.log(cell.mean_completion) - sigma**2 / 2
    drawn = np.rint(rng.lognormal(mu, sigma, count)).astype(int)
    return [int(n) for n in drawn.clip(1, 8 * cell.mean_completion)]


def make_groups(
    cell: Cell, vocab_size: int, sigma: float, seed: int, num_groups: int = 1
) -> list[RolloutGroup]:
    """Groups of random tokens; rewards are all different, so that no rollout has an advantage of zero."""
    rng = np.random.default_rng([seed, cell.prompt_length, cell.mean_completion, cell.group_size])
    return [_make_group(cell, vocab_size, sigma, rng, index) for index in range(num_groups)]


def _make_group(
    cell: Cell, vocab_size: int, sigma: float, rng: np.random.Generator, index: int
) -> RolloutGroup:
    prompt_ids = rng.integers(3, vocab_size, cell.prompt_length).tolist()
    lengths = completion_lengths(cell, sigma, cell.group_size, rng)
    rollouts = [
        Rollout(
            prompt_ids=prompt_ids,
            completion_ids=rng.integers(3, vocab_size, length).tolist(),
            sampler_logprobs=[0.0] * length,
            loss_mask=[1] * length,
            reward=float(rng.normal()),
            finish_reason="stop",
        )
        for length in lengths
    ]
    return RolloutGroup(example_id=index, task="ready", prompt_text="", answer="", rollouts=rollouts)
