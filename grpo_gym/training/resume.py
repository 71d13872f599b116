"""What a checkpoint holds beside transformers' own files: where the prompt stream stood, and unfinished rollouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from grpo_gym.rollouts.source import StepRollouts
from grpo_gym.rollouts.types import Rollout, RolloutGroup

if TYPE_CHECKING:
    from grpo_gym.training.trainer import GRPOTrainer

ROLLOUT_STATE_NAME = "rollout_state.json"


def save_rollout_state(trainer: GRPOTrainer) -> None:
    """Write `rollout_state.json` into the newest checkpoint; called by every rank, written by rank 0."""
    unfinished = trainer.state.global_step % trainer.args.num_iterations != 0
    old_logprobs = _merged_over_ranks(trainer.policy_loss.state_dict()) if unfinished else {}
    if not trainer.is_world_process_zero():
        return
    directory = Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}"
    assert trainer.rollouts is not None
    assert trainer.rollouts.source is not None
    state = {"source": trainer.rollouts.source.state_dict(), "pending": None}
    if unfinished and trainer.last_groups is not None:
        state["pending"] = {
            "groups": [dataclasses.asdict(group) for group in trainer.last_groups.groups],
            "old_logprobs": old_logprobs,
        }
    (directory / ROLLOUT_STATE_NAME).write_text(json.dumps(state))


def load_rollout_state(trainer: GRPOTrainer, checkpoint: str) -> None:
    """Go on with the next prompt, and with rollouts that still had iterations to come.

    Raises:
        ValueError: the checkpoint was not written by this trainer.
    """
    path = Path(checkpoint) / ROLLOUT_STATE_NAME
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no {ROLLOUT_STATE_NAME}: resume from a checkpoint of GRPOTrainer."
        )
    state = json.loads(path.read_text())
    if trainer.rollouts is not None and trainer.rollouts.source is not None:
        trainer.rollouts.source.load_state_dict(state["source"])
    if state["pending"]:
        groups = [_group(record) for record in state["pending"]["groups"]]
        trainer.use_rollouts(StepRollouts(groups, seconds=0.0, num_generated=len(groups)))
        trainer.policy_loss.load_state_dict(state["pending"]["old_logprobs"], trainer.args.device)


def find_last_checkpoint(output_dir: str) -> str:
    """The newest checkpoint of a run.

    Raises:
        ValueError: there is none.
    """
    found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found is None:
        raise ValueError(
            f"resume_from_checkpoint=True, but {output_dir} has no checkpoint-*; "
            "train without it, or lower save_steps so that there is one the next time."
        )
    return str(found)


def _merged_over_ranks(state: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each rank knows the old log-probs of its own share of the rollouts."""
    if not torch.distributed.is_initialized():
        return state
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return {rollout_id: values for each in states for rollout_id, values in each.items()}


def _group(record: dict) -> RolloutGroup:
    return RolloutGroup(**{**record, "rollouts": [Rollout(**rollout) for rollout in record["rollouts"]]})
