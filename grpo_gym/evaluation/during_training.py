"""Evaluations of a training: `eval_results/eval_step_N.json`, and `train_results.json` at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from grpo_gym.evaluation.compare import compare_problems
from grpo_gym.evaluation.results import (
    problem_from_group,
    read_results,
    results_record,
    write_json,
)
from grpo_gym.evaluation.summary import Summary, summarize_all
from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rollouts.types import RolloutGroup

if TYPE_CHECKING:
    from grpo_gym.training.config import GRPOConfig
    from grpo_gym.training.trainer import GRPOTrainer

RESULTS_DIR = "eval_results"
TRAIN_RESULTS_FILE = "train_results.json"
_ACCURACY = "eval_accuracy"


def evaluation_path(output_dir: str | Path, step: int, prefix: str = "eval") -> Path:
    """Where the evaluation at optimizer step `step` is kept."""
    return Path(output_dir) / RESULTS_DIR / f"{prefix}_step_{step}.json"


def evaluation_params(args: GRPOConfig) -> SamplingParams:
    """How evaluations sample: as training does, at `eval_temperature` where it is set."""
    params = args.sampling_params
    if args.eval_temperature is None:
        return params
    return dataclasses.replace(params, temperature=args.eval_temperature)


def record_evaluation(
    trainer: GRPOTrainer, groups: Sequence[RolloutGroup], prefix: str = "eval"
) -> dict[str, float]:
    """The metrics of an evaluation, for the log; rank 0 also writes its file.

    Raises:
        RuntimeError: not one rollout could be generated and scored.
    """
    problems = [problem_from_group(group, trainer.env.pass_threshold) for group in groups]
    summary = summarize_all(problems)
    if not summary["all"]["num_samples"]:
        raise RuntimeError("the evaluation failed: not one rollout could be generated and scored.")
    if trainer.is_world_process_zero():
        step = trainer.state.global_step
        about = {
            "kind": "training",
            "step": step,
            "model": trainer.preflight.model_name,
            "held_out": trainer.preflight.has_eval_set,
            "num_samples_per_problem": trainer.args.eval_num_samples,
            "sampling": dataclasses.asdict(evaluation_params(trainer.args)),
        }
        path = evaluation_path(str(trainer.args.output_dir), step, prefix)
        write_json(path, results_record(problems, summary, about))
    return {f"{prefix}_{name}": value for name, value in flat_metrics(summary).items()}


def flat_metrics(summary: Summary) -> dict[str, float]:
    """A summary under short names: `accuracy`, `pass@4`, `accuracy/TASK` (where there are several tasks)."""
    metrics = _flat(summary["all"])
    if len(summary["by_task"]) > 1:
        for task, of_task in summary["by_task"].items():
            metrics |= {f"{name}/{task}": value for name, value in _flat(of_task).items() if _by_task(name)}
    return metrics


def _flat(summary: Summary) -> dict[str, float]:
    if not summary["num_samples"]:
        return {}
    accuracy = summary["accuracy"]
    metrics = {
        "reward": summary["reward"]["mean"],
        "accuracy": accuracy["mean"],
        "mean_length": summary["mean_length"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "num_failed": float(summary["num_failed"]),
    }
    if summary["format_rate"] is not None:
        metrics["format_rate"] = summary["format_rate"]["mean"]
    return metrics | {f"pass@{k}": value["mean"] for k, value in summary["pass_at_k"].items() if k != "1"}


def _by_task(name: str) -> bool:
    return name in ("accuracy", "reward") or name.startswith("pass@")


@contextlib.contextmanager
def baseline_only_once(args: GRPOConfig, checkpoint: str | None) -> Iterator[None]:
    """Without `eval_on_start` while a training resumes that has its baseline: that was before any update."""
    before = args.eval_on_start
    if checkpoint and _has_evaluation(Path(checkpoint)):
        args.eval_on_start = False
    try:
        yield
    finally:
        args.eval_on_start = before


def _has_evaluation(checkpoint: Path) -> bool:
    state = checkpoint / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.is_file() else []
    return any(_ACCURACY in entry for entry in history)


def wants_final_evaluation(args: GRPOConfig, state: TrainerState) -> bool:
    """Whether evaluations are on and the weights of the last step were not evaluated yet."""
    if not (args.eval_on_start or args.do_eval):
        return False
    evaluated = [entry["step"] for entry in state.log_history if _ACCURACY in entry]
    return state.global_step not in evaluated or args.load_best_model_at_end


def write_train_results(trainer: GRPOTrainer, output: TrainOutput) -> None:
    """`train_results.json` on rank 0: the Trainer's metrics, baseline, final evaluation, and what was gained."""
    if not trainer.is_world_process_zero():
        return
    evaluations = [_entry(e) for e in trainer.state.log_history if _ACCURACY in e]
    content: dict[str, Any] = {**output.metrics, "global_step": trainer.state.global_step}
    if trainer.state.best_metric is not None:
        content |= {"best_metric": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    if evaluations:
        baseline, final = evaluations[0], evaluations[-1]
        content |= {"baseline": baseline, "final": final, "evaluations": evaluations}
        output_dir = str(trainer.args.output_dir)
        content["gain"] = gain_between(output_dir, int(baseline["step"]), int(final["step"]))
    write_json(Path(str(trainer.args.output_dir)) / TRAIN_RESULTS_FILE, content)


def gain_between(output_dir: str, first_step: int, last_step: int) -> dict[str, Any] | None:
    """The paired comparison of two evaluations of a run, or None when one of them left no file."""
    paths = [evaluation_path(output_dir, step) for step in (first_step, last_step)]
    if first_step == last_step or not all(path.is_file() for path in paths):
        return None
    before, after = (read_results(path) for path in paths)
    return dataclasses.asdict(compare_problems(before.problems, after.problems).total)


def _entry(log: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in log.items() if name == "step" or name.startswith("eval_")}
