"""A run's folder as a training leaves it, made up: any size in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from grpo_gym.evaluation.results import problem_from_group, results_record, write_json
from grpo_gym.evaluation.summary import summarize_all
from grpo_gym.reporting.completions import write_completions
from grpo_gym.rollouts.types import Rollout, RolloutGroup

TASKS = ("leg_counting", "chain_sum")


def make_run(
    folder: Path, steps: int = 6, groups: int = 4, size: int = 4, max_steps: int | None = None
) -> Path:
    """`steps` optimizer steps of `groups` prompts with `size` completions each, with log and evaluations."""
    for step in range(steps):
        write_completions(folder, step, make_groups(step, groups, size))
    write_log(folder, steps, max_steps or steps)
    return folder


def make_groups(step: int, groups: int, size: int) -> list[RolloutGroup]:
    return [make_group(step, number, TASKS[number % 2], size) for number in range(groups)]


def make_group(step: int, number: int, task: str, size: int) -> RolloutGroup:
    rng = random.Random(1000 * step + number)
    rollouts = [make_rollout(rng, step, i) for i in range(size)]
    prompt = f"Problem {number} of step {step}:\n    how many legs have {number + 2} cows & 1 < 2 hens?"
    return RolloutGroup(100 * step + number, task, prompt, str(4 * number), rollouts)


def make_rollout(rng: random.Random, step: int, index: int) -> Rollout:
    length = rng.randint(5, 60)
    words = " ".join(
        rng.choice(("cows", "have", "four", "legs", "and", "so", "that", "makes")) for _ in range(length)
    )
    reward = rng.choice((0.0, 0.0, 0.5, 1.0))
    return Rollout(
        prompt_ids=[1, 2],
        completion_ids=list(range(length)),
        sampler_logprobs=[-0.5] * length,
        loss_mask=[1] * length,
        reward=reward,
        metrics={"correctness": reward, "strict_format": float(index % 2)},
        policy_version=step,
        finish_reason="length" if length > 55 else "stop",
        completion_text=f"<think>\n  {words}\n</think>\n<answer>{rng.randint(0, 99)}</answer>",
    )


def log_entry(step: int) -> dict[str, float]:
    return {
        "loss": 0.01 * (-1) ** step, "grad_norm": 0.5, "learning_rate": 1e-4, "step": step,
        "reward": 0.1 + 0.005 * min(step, 150), "reward_std": 0.3, "frac_reward_zero_std": 0.25,
        "informative_fraction": 0.75, "entropy": 1.0 / (1 + 0.05 * step), "kl": 0.001 * step, "mismatch_kl": 1e-7,
        "rewards/correctness/mean": 0.2, "rewards/strict_format/mean": 0.5,
        "completions/mean_length": 40.0 + step % 7, "completions/min_length": 5.0, "completions/max_length": 60.0,
        "completions/clipped_ratio": 0.05, "time/rollout": 1.5, "time/train": 0.5, "time/sync": 0.1,
        "tokens_per_second": 900.0 + step,
    }  # fmt: skip


def eval_entry(step: int, accuracy: float) -> dict[str, float]:
    tasks = {
        f"eval_accuracy/{task}": accuracy + shift for task, shift in zip(TASKS, (-0.05, 0.05), strict=True)
    }
    return {
        "eval_reward": accuracy,
        "eval_accuracy": accuracy,
        "eval_mean_length": 30.0,
        **tasks,
        "step": step,
    }


def write_log(folder: Path, steps: int, max_steps: int, first_step: int = 0, started: float = 0.0) -> None:
    header = {"started": started, "first_step": first_step, "max_steps": max_steps}
    entries = [eval_entry(0, 0.1), *(log_entry(step) for step in range(1, steps + 1)), eval_entry(steps, 0.6)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry) for entry in (header, *entries)]
    (folder / "log_history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_evaluation(folder, step, correct_by_task, samples=1):
    """`correct_by_task`: {task: [whether each problem is solved]}."""
    problems = [
        problem_from_group(evaluated_group(task, i, solved, samples), threshold=1.0)
        for task, outcomes in correct_by_task.items()
        for i, solved in enumerate(outcomes)
    ]
    record = results_record(problems, summarize_all(problems), {"kind": "training", "step": step})
    return write_json(folder / "eval_results" / f"eval_step_{step}.json", record)


def evaluated_group(task, number, solved, samples):
    reward = None if solved is None else float(solved)
    rollouts = [
        Rollout([1], [2], [-0.1], [1], reward, error="no answer" if reward is None else None)
        for _ in range(samples)
    ]
    return RolloutGroup(number, task, f"{task} {number}", "", rollouts)
