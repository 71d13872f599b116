"""How many prompts and completions one optimizer step takes (TRL's arithmetic), and what to do when it fails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The size of one optimizer step: `prompts_per_step` groups of `num_generations` completions."""

    completions_per_step: int
    num_generations: int

    @property
    def prompts_per_step(self) -> int:
        """Number of groups in one optimizer step."""
        return self.completions_per_step // self.num_generations


def divisors(number: int) -> list[int]:
    """All divisors of `number` from 2 on, ascending."""
    return [candidate for candidate in range(2, number + 1) if number % candidate == 0]


def nearest_divisors(number: int, wanted: int) -> list[int]:
    """The divisors of `number` next to `wanted`: at most one below and one above."""
    below = [d for d in divisors(number) if d < wanted]
    above = [d for d in divisors(number) if d > wanted]
    return below[-1:] + above[:1]


def plan_batch(
    per_device_train_batch_size: int,
    num_processes: int,
    gradient_accumulation_steps: int,
    num_generations: int,
) -> BatchPlan:
    """Completions per step = per_device_train_batch_size x processes x gradient_accumulation_steps.

    Raises:
        ValueError: fewer than two generations, or a product that is not a whole number of groups; the
            message names the nearest values that work.
    """
    if num_generations < 2:
        raise ValueError(
            f"num_generations={num_generations}: GRPO compares the completions of a prompt with each other; "
            "use at least 2."
        )
    completions = per_device_train_batch_size * num_processes * gradient_accumulation_steps
    if completions % num_generations == 0:
        return BatchPlan(completions, num_generations)
    valid = " or ".join(f"num_generations={d}" for d in nearest_divisors(completions, num_generations))
    per_unit = num_processes * gradient_accumulation_steps
    batch = next(
        size
        for size in range(per_device_train_batch_size + 1, 10**9)
        if size * per_unit % num_generations == 0
    )
    choices = f"{valid} or " if valid else ""
    raise ValueError(
        f"per_device_train_batch_size={per_device_train_batch_size} x {num_processes} processes x "
        f"gradient_accumulation_steps={gradient_accumulation_steps} = {completions} completions per step, which is not "
        f"divisible by num_generations={num_generations}; use {choices}per_device_train_batch_size={batch}."
    )
