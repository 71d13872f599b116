"""What a run says on the terminal before, between and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from tqdm.auto import tqdm

from grpo_gym.reporting.completions import COMPLETIONS_DIR

if TYPE_CHECKING:
    from grpo_gym.training.trainer import GRPOTrainer

TENSORBOARD_DIR = "runs"


def print_evaluation(metrics: Mapping[str, float], step: int, problems: str) -> None:
    """One line for one evaluation."""
    accuracy = next(value for name, value in metrics.items() if name.endswith("_accuracy"))
    reward = next(value for name, value in metrics.items() if name.endswith("_reward"))
    with tqdm.external_write_mode():
        Console(soft_wrap=True).print(
            f"[bold]evaluation at step {step}[/bold]: accuracy {accuracy:.1%}, mean reward {reward:.3f} "
            f"({problems})"
        )


def print_where_things_are(trainer: GRPOTrainer) -> None:
    """The gain, and one line each for the model, the logs and the samples."""
    if not trainer.is_world_process_zero():
        return
    console = Console()
    output_dir = Path(str(trainer.args.output_dir))
    accuracies = [(e["step"], e["eval_accuracy"]) for e in trainer.state.log_history if "eval_accuracy" in e]
    if len(accuracies) > 1:
        (first_step, first), (last_step, last) = accuracies[0], accuracies[-1]
        where = "held-out" if trainer.preflight.has_eval_set else "TRAINING"
        console.print(
            f"[bold green]{where} accuracy {first:.1%} (step {first_step}) -> {last:.1%} (step {last_step}), "
            f"{100 * (last - first):+.1f} points[/bold green]"
        )
    if trainer.preflight.stream.num_skipped:
        console.print(f"{trainer.preflight.stream.num_skipped} prompts were left out: too long")
    console.print(f"model:   {output_dir}")
    if "tensorboard" in (trainer.args.report_to or []):
        console.print(f"logs:    tensorboard --logdir {output_dir / TENSORBOARD_DIR}")
    if trainer.args.log_completions:
        console.print(f"samples: {output_dir / COMPLETIONS_DIR}")
