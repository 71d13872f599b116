"""What TensorBoard shows beside the scalars: histograms of the newest rollouts, and samples to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from grpo_gym.rollouts.types import Rollout, RolloutGroup

if TYPE_CHECKING:
    from grpo_gym.training.trainer import GRPOTrainer

SAMPLED_GROUPS = 4
_MAX_CHARACTERS = 4000


class TensorBoardRolloutsCallback(TrainerCallback):
    """Histograms of rewards, lengths and advantages, and a text tab, at every training log.

    It writes through transformers' own callback: TensorBoard reads one event file of a folder at a time.

    Args:
        trainer: whose newest rollouts are shown.
        scalars: the callback that owns the event file.
    """

    def __init__(self, trainer: GRPOTrainer, scalars: TensorBoardCallback) -> None:
        self._trainer = trainer
        self._scalars = scalars

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write histograms and samples with a training log; evaluation logs have neither."""
        writer, rollouts = self._scalars.tb_writer, self._trainer.last_groups
        if writer is None or rollouts is None or not logs or "reward" not in logs:
            return
        batch = self._trainer.step_batch
        step = state.global_step
        if batch is not None:
            valid = batch.rewards.isfinite()
            if valid.any():
                writer.add_histogram("rollouts/reward", batch.rewards[valid], step)
                writer.add_histogram("rollouts/advantage", batch.advantages[valid], step)
        lengths = [len(r.completion_ids) for group in rollouts.groups for r in group.valid_rollouts]
        if lengths:
            writer.add_histogram("rollouts/completion_length", torch.tensor(lengths), step)
        writer.add_text("completions", samples_text(rollouts.groups[:SAMPLED_GROUPS]), step)
        writer.flush()


def samples_text(groups: Sequence[RolloutGroup]) -> str:
    """Markdown of the best and the worst completion of each group; texts are code, so nothing in them acts."""
    parts = []
    for group in groups:
        rollouts = sorted(group.valid_rollouts, key=lambda r: r.reward or 0.0)
        shown = {id(r): r for r in (rollouts[-1:] + rollouts[:1])}.values()
        parts += [f"### {group.task}", _code(group.prompt_text), f"expected: `{_one_line(group.answer)}`"]
        parts += [part for rollout in shown for part in _rollout_text(rollout)]
    return "\n\n".join(parts)


def _rollout_text(rollout: Rollout) -> tuple[str, str]:
    heading = f"**reward {rollout.reward:.3f}**, {len(rollout.completion_ids)} tokens"
    return heading, _code(rollout.completion_text)


def _code(text: str) -> str:
    """An indented code block: needs no fence that the text itself could close."""
    cut = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " …"
    return "\n".join(f"    {line}" for line in cut.splitlines() or [""])


def _one_line(text: str) -> str:
    return " ".join(text.replace("`", "'").split())[:200]
