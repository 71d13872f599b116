"""What an evaluation leaves behind: every problem with every scored sample, as plain JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gym.evaluation.accuracy import is_correct
from grpo_gym.rollouts.types import Rollout, RolloutGroup

FORMAT = "grpo-gym-evaluation-1"
"""Says that a file is an evaluation, and how it is laid out."""
RESULTS_FILE = "results.json"


@dataclass(slots=True)
class Sample:
    """One completion and what it was worth.

    `score` is the environment's first reward function (its correctness by convention), `correct` whether it
    reaches the environment's pass threshold, `reward` the weighted sum, `format` the environment's format
    reward where it has one. When the sample could not be generated or scored, `error` says why, and it
    counts in no rate.
    """

    completion: str
    score: float | None
    correct: bool
    reward: float | None
    format: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    num_tokens: int | None = None
    truncated: bool = False
    error: str | None = None

    @property
    def is_valid(self) -> bool:
        """Whether it was generated and scored."""
        return self.error is None and self.reward is not None


@dataclass(slots=True)
class Problem:
    """One problem with its samples; `id` is a digest of prompt and answer."""

    id: str
    task: str
    example_id: int
    prompt: str
    answer: str
    category: str | None = None
    samples: list[Sample] = field(default_factory=list)

    @property
    def valid_samples(self) -> list[Sample]:
        """The samples that were generated and scored."""
        return [sample for sample in self.samples if sample.is_valid]

    @property
    def num_correct(self) -> int:
        """How many samples are correct."""
        return sum(sample.correct for sample in self.valid_samples)


def problem_id(prompt: str, answer: str) -> str:
    """16 hexadecimal digits that change with the text of the problem."""
    return hashlib.sha256(f"{prompt}\0{answer}".encode()).hexdigest()[:16]


def sample_from_rollout(rollout: Rollout, threshold: float) -> Sample:
    """A scored rollout as a `Sample`; token ids stay behind."""
    failed = rollout.error is not None or rollout.reward is None
    return Sample(
        completion=rollout.completion_text,
        score=None if failed else next(iter(rollout.metrics.values()), rollout.reward),
        correct=not failed and is_correct(rollout, threshold),
        reward=None if failed else rollout.reward,
        format=None if failed else format_score(rollout.metrics),
        metrics=dict(rollout.metrics),
        num_tokens=len(rollout.completion_ids),
        truncated=rollout.is_truncated,
        error=(rollout.error or "no reward") if failed else None,
    )


def problem_from_group(group: RolloutGroup, threshold: float) -> Problem:
    """A group of rollouts as a `Problem`."""
    return Problem(
        id=problem_id(group.prompt_text, group.answer),
        task=group.task,
        example_id=group.example_id,
        prompt=group.prompt_text,
        answer=group.answer,
        samples=[sample_from_rollout(rollout, threshold) for rollout in group.rollouts],
    )


def format_score(metrics: Mapping[str, float]) -> float | None:
    """The first metric with "format" in its name; None where an environment has none."""
    return next((value for name, value in metrics.items() if "format" in name), None)


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write beside the file and rename, so that there is never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def results_record(
    problems: Sequence[Problem], summary: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of a results file: what it is about, the summary, every problem."""
    return {
        "format": FORMAT,
        **about,
        "summary": summary,
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """A results file that was read: `about` is everything but the problems."""

    path: Path
    about: dict[str, Any]
    problems: list[Problem]


def read_results(path: Path) -> ResultsFile:
    """Read `results.json`, an `eval_step_N.json`, or the folder that holds the former.

    Raises:
        ValueError: no such file, or not a finished evaluation.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read '{path}': {error.strerror}; give the {RESULTS_FILE} of `grpo-gym eval`, or the "
            "eval_results/eval_step_N.json of a training."
        ) from error
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'\'{path}\' is not an evaluation: it lacks "format": "{FORMAT}".')
    problems = [
        Problem(**{**record, "samples": [Sample(**sample) for sample in record["samples"]]})
        for record in content.pop("problems")
    ]
    return ResultsFile(path, content, problems)
