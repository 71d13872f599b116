"""Checkpoints appear whole, replace what is there, and leave nothing beside."""

from pathlib import Path

import pytest

from tests.training.test_trainer import train

STEPS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    from grpo_gym.training import trainer as module

    def fail(trainer, folder):
        if trainer.state.global_step == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_rollout_state", fail)
    with pytest.raises(OSError, match="no space"):
        train(tmp_path, **STEPS)
    out = tmp_path / "out"
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1"}
    assert (out / ".saving" / "checkpoint-2" / "model.safetensors").is_file()


def test_old_checkpoints_make_room_and_a_second_run_replaces_the_first(tmp_path):
    for _ in range(2):
        trainer = train(tmp_path, save_total_limit=2, **STEPS)
    out = Path(trainer.args.output_dir)
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert not (out / ".saving").exists()
    assert (out / "model.safetensors").is_file()
    assert (out / "checkpoint-3" / "rollout_state.json").is_file()
