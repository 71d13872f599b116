"""Runs an evaluation: what is not in the journal yet is sampled and scored; then the results are written."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from grpo_gym.config.provenance import installed_versions
from grpo_gym.evaluation.checkpoint import check_model, model_fingerprint, model_label
from grpo_gym.evaluation.config import EvalConfig
from grpo_gym.evaluation.datasets import LoadedDataset, load_datasets
from grpo_gym.evaluation.journal import Journal, Key
from grpo_gym.evaluation.policy import EvaluationStopped, Policy, open_policy
from grpo_gym.evaluation.results import (
    RESULTS_FILE,
    Problem,
    Sample,
    results_record,
    write_json,
)
from grpo_gym.evaluation.summary import Summary, summarize_all
from grpo_gym.rewards.correctness import score_in_workers
from grpo_gym.rollouts.scoring import record_scorer_errors
from grpo_gym.rollouts.token_client import mix_seed

_MAX_FAILURES_IN_A_ROW = 16
_NOT_ANSWERED = ("generation failed", "no tokens came back")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished evaluation."""

    folder: Path
    summary: Summary
    num_reused: int
    num_sampled: int
    failures: list[str]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Samples of one problem that are made together: one, or all where rewards compare them."""

    dataset: LoadedDataset
    problem: int
    repeats: tuple[int, ...]

    @property
    def keys(self) -> list[Key]:
        return [(self.dataset.name, self.problem, repeat) for repeat in self.repeats]


def run_evaluation(config: EvalConfig) -> Outcome:
    """Evaluate, or go on where a run with the same settings was stopped.

    Raises:
        ValueError: (ConfigError, too) model, datasets or output_dir cannot be used; nothing was sampled.
        EvaluationStopped: the model stopped answering, or not one sample could be scored.
    """
    folder = Path(str(config.output_dir))
    check_model(config)
    datasets = load_datasets(config)
    with Journal(folder, journal_settings(config)) as journal:
        units = list(missing_units(config, datasets, journal))
        wanted = sum(len(dataset.rows) for dataset in datasets) * config.repeats
        progress = _Progress(wanted, wanted - sum(len(unit.repeats) for unit in units))
        failures: dict[Key, Sample] = {}
        if units:
            with open_policy(config) as policy, progress:
                failures = asyncio.run(_sample_all(config, units, policy, journal, progress))
        problems = scored_problems(config, datasets, journal, failures)
    summary = summarize_all(problems)
    if not summary["all"]["num_samples"]:
        first = next(iter(failures.values()), None)
        raise EvaluationStopped(f"not one completion could be scored: {first.error if first else 'none'}")
    write_json(folder / RESULTS_FILE, results_record(problems, summary, about(config)))
    messages = [str(sample.error) for p in problems for sample in p.samples if not sample.is_valid]
    return Outcome(folder, summary, progress.num_reused, wanted - progress.num_reused, messages)


def about(config: EvalConfig) -> dict[str, Any]:
    """What the results are about."""
    return {
        "kind": "eval",
        "model": model_label(config),
        "num_samples_per_problem": config.repeats,
        "config": config.model_dump(mode="json", exclude_unset=True),
        "versions": installed_versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def journal_settings(config: EvalConfig) -> dict[str, Any]:
    """What a completion depends on. Not `size` and `repeats`: more of them only add completions."""
    common = {"system_prompt": config.system_prompt, "few_shot": config.few_shot, "think": config.think}
    datasets = {}
    for members in config.categories.values():
        for name, entry in members.items():
            seed = config.default_seed if entry.seed is None else entry.seed
            specific = (
                {"environment": entry.environment, "env_args": entry.env_args}
                if entry.environment
                else {"dataset": entry.dataset or name, "seed": seed, "params": entry.params, **common}
            )
            datasets[name] = specific
    return {
        "model": model_fingerprint(config),
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
        "chat_template_kwargs": config.chat_template_kwargs,
        "datasets": datasets,
    }


def missing_units(config: EvalConfig, datasets: Sequence[LoadedDataset], journal: Journal) -> Iterator[_Unit]:
    """What is still to be sampled, all repeats of a problem together (they share its prompt).

    Raises:
        ValueError: a problem reads differently from the one that the journal's completion answers.
    """
    for dataset in datasets:
        for number, problem in enumerate(dataset.problems):
            repeats = [r for r in range(config.repeats) if not _is_done(journal, dataset, number, r, problem)]
            if dataset.env.requires_group_rollouts and repeats:
                yield _Unit(dataset, number, tuple(range(config.repeats)))
            else:
                yield from (_Unit(dataset, number, (repeat,)) for repeat in repeats)


def _is_done(journal: Journal, dataset: LoadedDataset, number: int, repeat: int, problem: Problem) -> bool:
    record = journal.records.get((dataset.name, number, repeat))
    if record is not None and record["id"] != problem.id:
        raise ValueError(
            f"problem {number} of {dataset.name} is not the one that {journal.path} has a completion of (another "
            "version of Reasoning Gym or of the environment?); choose another output_dir, or delete that file."
        )
    return record is not None


def scored_problems(
    config: EvalConfig, datasets: Sequence[LoadedDataset], journal: Journal, failures: dict[Key, Sample]
) -> list[Problem]:
    """Every problem with all its samples, failed ones too."""
    problems = []
    for dataset in datasets:
        for number, problem in enumerate(dataset.problems):
            keys = [(dataset.name, number, repeat) for repeat in range(config.repeats)]
            samples = [
                Sample(**journal.records[key]["sample"]) if key in journal.records else failures[key]
                for key in keys
            ]
            problems.append(dataclasses.replace(problem, samples=samples))
    return problems


async def _sample_all(
    config: EvalConfig, units: Sequence[_Unit], policy: Policy, journal: Journal, progress: _Progress
) -> dict[Key, Sample]:
    """Sample every unit; returns the samples that failed for a reason other than the model."""
    for dataset in {id(unit.dataset): unit.dataset for unit in units}.values():
        score_in_workers(dataset.env)
        record_scorer_errors(dataset.env)
    queue = iter(units)
    failures: dict[Key, Sample] = {}

    async def worker() -> None:
        for unit in queue:
            samples = await _sample_unit(config, unit, policy)
            for key, sample in zip(unit.keys, samples, strict=True):
                if _was_answered(sample):
                    problem = unit.dataset.problems[unit.problem]
                    journal.add(key, {"id": problem.id, "sample": dataclasses.asdict(sample)})
                else:
                    failures[key] = sample
                progress.add(sample, config)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(config.max_concurrent, len(units))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    finally:
        await policy.close()
    return failures


async def _sample_unit(config: EvalConfig, unit: _Unit, policy: Policy) -> list[Sample]:
    """The samples of a unit, tried again while one of them was not answered."""
    row = unit.dataset.rows[unit.problem]
    name = zlib.crc32(unit.dataset.name.encode())
    seed = mix_seed(config.seed, name, unit.problem, unit.repeats[0])
    samples: list[Sample] = []
    for _ in range(1 + config.max_retries):
        samples = await policy.sample(unit.dataset.env, row, len(unit.repeats), seed)
        if all(_was_answered(sample) for sample in samples):
            break
    return samples


def _was_answered(sample: Sample) -> bool:
    return not (sample.error or "").startswith(_NOT_ANSWERED)


@dataclass
class _Progress:
    """The bar, and the count of failures in a row."""

    num_wanted: int
    num_reused: int
    _failures_in_a_row: int = 0
    _correct: list[bool] = field(default_factory=list)
    _bar: tqdm | None = None

    def __enter__(self) -> _Progress:
        self._bar = tqdm(total=self.num_wanted, initial=self.num_reused, desc="eval", unit="completion")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, sample: Sample, config: EvalConfig) -> None:
        """Count a sample.

        Raises:
            EvaluationStopped: too many were not answered, one after the other.
        """
        self._failures_in_a_row = 0 if _was_answered(sample) else self._failures_in_a_row + 1
        if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
            raise EvaluationStopped(
                f"{self._failures_in_a_row} completions in a row failed, the last because: {sample.error}; what is "
                f"finished is kept in {config.output_dir}: run the same command again to go on."
            )
        if sample.is_valid:
            self._correct.append(sample.correct)
        if self._bar is not None:
            self._bar.update()
            if self._correct:
                rate = sum(self._correct) / len(self._correct)
                self._bar.set_postfix_str(f"accuracy {rate:.1%}", refresh=False)
