"""What a checkpoint holds beside transformers' own files: where the prompt stream stood, and unfinished rollouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo_gym.rollouts.source import StepRollouts
from grpo_gym.rollouts.types import Rollout, RolloutGroup

if TYPE_CHECKING:
    from grpo_gym.training.trainer import GRPOTrainer

ROLLOUT_STATE_NAME = "rollout_state.json"
AUTO = "auto"


def save_rollout_state(trainer: GRPOTrainer, directory: Path) -> None:
    """Write `rollout_state.json` into a checkpoint; called by every rank, written by rank 0."""
    unfinished = trainer.state.global_step % trainer.args.num_iterations != 0
    old_logprobs = _merged_over_ranks(trainer.policy_loss.state_dict()) if unfinished else {}
    # The file says that the checkpoint is complete, so every rank must be done with its part.
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    assert trainer.rollouts is not None
    assert trainer.rollouts.source is not None
    state = {"source": trainer.rollouts.source.state_dict(), "pending": None}
    if unfinished and trainer.last_groups is not None:
        state["pending"] = {
            "groups": [dataclasses.asdict(group) for group in trainer.last_groups.groups],
            "old_logprobs": old_logprobs,
        }
    unfinished_file = directory / f"{ROLLOUT_STATE_NAME}.incomplete"
    unfinished_file.write_text(json.dumps(state))
    unfinished_file.replace(directory / ROLLOUT_STATE_NAME)


def load_rollout_state(trainer: GRPOTrainer, checkpoint: str) -> None:
    """Go on with the next prompt, and with rollouts that still had iterations to come."""
    state = json.loads((Path(checkpoint) / ROLLOUT_STATE_NAME).read_text())
    if trainer.rollouts is not None and trainer.rollouts.source is not None:
        trainer.rollouts.source.load_state_dict(state["source"])
    if state["pending"]:
        groups = [_group(record) for record in state["pending"]["groups"]]
        trainer.use_rollouts(StepRollouts(groups, seconds=0.0, num_generated=len(groups)))
        trainer.policy_loss.load_state_dict(state["pending"]["old_logprobs"], trainer.args.device)


def choose_checkpoint(choice: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint to go on from; None to start anew.

    Args:
        choice: a folder; True for the newest checkpoint of the run; "auto" for the same, when there is one (a job
            that is queued again after its time limit runs the same command).
        output_dir: the run's folder.

    Raises:
        ValueError: True, and there is none; or a folder that is no checkpoint of this trainer.
    """
    if not choice:
        return None
    if choice is not True and choice != AUTO:
        if not (Path(choice) / ROLLOUT_STATE_NAME).is_file():
            raise ValueError(
                f"resume_from_checkpoint: {choice} has no {ROLLOUT_STATE_NAME}; name a checkpoint-N of GRPOTrainer."
            )
        return str(choice)
    found = find_last_checkpoint(output_dir)
    if found is None and choice is True:
        raise ValueError(
            f"resume_from_checkpoint=True, but {output_dir} has no checkpoint-* that is complete; "
            'use "auto" to start anew then, or lower save_steps so that there is one the next time.'
        )
    return found


def find_last_checkpoint(output_dir: str) -> str | None:
    """The newest complete checkpoint of a run: `rollout_state.json` is written last."""
    numbered = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / ROLLOUT_STATE_NAME).is_file()
    ]
    return str(max(numbered)[1]) if numbered else None


def _merged_over_ranks(state: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each rank knows the old log-probs of its own share of the rollouts."""
    if not torch.distributed.is_initialized():
        return state
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return {rollout_id: values for each in states for rollout_id, values in each.items()}


def _group(record: dict) -> RolloutGroup:
    return RolloutGroup(**{**record, "rollouts": [Rollout(**rollout) for rollout in record["rollouts"]]})
