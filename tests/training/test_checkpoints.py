"""Checkpoints appear whole, replace what is there, and leave nothing beside."""

import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from grpo_gym.export.export import export_checkpoint
from grpo_gym.training import checkpoints
from grpo_gym.training.resume import find_last_checkpoint
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


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def test_the_model_of_a_used_folder_is_the_last_run_s(tmp_path):
    """LoRA, then the whole model, then LoRA again: what was there before would be loaded in place of the new one."""
    train(tmp_path, peft_config=LoraConfig(**LORA), max_steps=1)
    out = tmp_path / "out"
    (out / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'
    )
    (out / "model-00001-of-00002.safetensors").write_text("")
    whole = train(tmp_path, max_steps=1).model
    names = {path.name for path in out.iterdir()}
    assert not names & {
        "adapter_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    }
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(p, whole.get_parameter(name)) for name, p in loaded.named_parameters())
    assert not export_checkpoint(out, tmp_path / "exported").is_adapter
    train(tmp_path, peft_config=LoraConfig(**LORA), max_steps=1)
    assert not {path.name for path in out.iterdir()} & {"model.safetensors", "config.json"}
    assert (out / "adapter_model.safetensors").is_file()


def test_adapters_trained_beside_their_base_model_leave_it(tmp_path):
    target, unfinished = tmp_path / "model", tmp_path / "model" / ".saving"
    unfinished.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "adapter_model.bin"):
        (target / name).write_text("base")
    (unfinished / "adapter_model.safetensors").write_text("adapter")
    (unfinished / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(target)}))
    checkpoints._move_into(unfinished, target)
    left = {"config.json", "model.safetensors", "adapter_model.safetensors", "adapter_config.json"}
    assert {path.name for path in target.iterdir()} == left


def test_a_kill_between_the_two_renames_loses_no_checkpoint(tmp_path, monkeypatch):
    for folder, text in (("checkpoint-2", "old"), (".saving/checkpoint-2", "new")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rollout_state.json").write_text(text)
    real, calls = os.replace, []

    def killed_at_the_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoints._publish(tmp_path / ".saving/checkpoint-2", tmp_path / "checkpoint-2")
    assert find_last_checkpoint(str(tmp_path)) is None
    checkpoints._restore_replaced(tmp_path)
    assert find_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2/rollout_state.json").read_text() == "old"
    checkpoints._publish(tmp_path / ".saving/checkpoint-2", tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2/rollout_state.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_run_that_starts_again_finds_the_checkpoint_it_was_replacing(tmp_path):
    train(tmp_path, **{**STEPS, "max_steps": 2})
    out = tmp_path / "out"
    (out / ".replaced").mkdir()
    (out / "checkpoint-2").rename(out / ".replaced/checkpoint-2")
    resumed = train(tmp_path, resume="auto", **STEPS)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3]
    assert not (out / ".replaced").exists()
