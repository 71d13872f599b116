"""Two families of tiny vision-language models learn to name colours, from pictures to weights."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from visual_tasks import load_environment

from grpo_gym import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tiny_vision.families import make, save
from tiny_vision.warm_start import warm_start

STEPS = 140


@functools.cache
def environment():
    return load_environment(image_size=56, num_eval_examples=100)


@pytest.fixture(scope="module", params=["idefics3", "qwen2_5_vl"])
def started(request, tmp_path_factory):
    """The folder of a model that names colours right about half of the time."""
    env = environment()
    rows = [env.row(index) for index in range(60)]
    texts = [f"{row['prompt'][0]['content']} {row['question']} {row['answer']}" for row in rows]
    model, processor = make(request.param, texts)
    warm_start(model, processor, env, steps=STEPS)
    return save(model.eval(), processor, tmp_path_factory.mktemp(request.param))


def settings(output_dir, **changes) -> GRPOConfig:
    given = {
        "max_steps": 25, "per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 6,
        "learning_rate": 5e-4, "eval_num_problems": 100, "eval_num_samples": 2, "eval_on_start": True,
        "report_to": "none", "disable_tqdm": True, "num_completions_to_print": 0, "save_strategy": "no", "seed": 1,
    }  # fmt: skip
    return GRPOConfig(output_dir=str(output_dir), **{**given, **changes})


def test_accuracy_rises_and_both_sides_agree(started, tmp_path):
    trainer = GRPOTrainer(started, environment(), settings(tmp_path))
    trainer.train()
    history = trainer.state.log_history
    accuracies = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert accuracies[-1] > accuracies[0] + 0.15
    steps = [entry for entry in history if "reward" in entry]
    assert max(entry["sampling/sampling_logp_difference/max"] for entry in steps) < 1e-4
    # What was logged is readable and small: no base64.
    files = sorted((tmp_path / "completions").glob("*.parquet"))
    prompts = pq.read_table(files[0]).column("prompt").to_pylist()
    assert all("<image_url>" in prompt and "base64" not in prompt for prompt in prompts)
    # What was saved is a whole model: it evaluates as it did at the end of training.
    again = GRPOTrainer(str(tmp_path), environment(), settings(tmp_path / "again"))
    assert again.evaluate()["eval_accuracy"] == accuracies[-1]


def test_frozen_parts_stay_and_the_rest_moves(started, tmp_path):
    args = settings(
        tmp_path, max_steps=1, eval_on_start=False, freeze_vision_tower=True, freeze_multimodal_projector=True
    )
    trainer = GRPOTrainer(started, environment(), args)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    seeing = ("visual", "vision_model", "connector")
    assert moved
    assert not any(part in name for name in moved for part in seeing)


def test_resumed_training_is_the_same_to_the_bit(started, tmp_path):
    small = {
        "max_steps": 4,
        "eval_on_start": False,
        "do_eval": False,
        "num_iterations": 2,
        "per_device_train_batch_size": 16,
    }
    whole = GRPOTrainer(started, environment(), settings(tmp_path / "whole", **small))
    whole.train()
    part = GRPOTrainer(
        started, environment(), settings(tmp_path / "part", **small, save_strategy="steps", save_steps=3)
    )
    part.train()
    resumed = GRPOTrainer(started, environment(), settings(tmp_path / "part", **small))
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_commands_of_the_documentation(tmp_path):
    root, folder = Path(__file__).parents[2], str(tmp_path / "model")
    tool = [sys.executable, "tools/make_tiny_vision_model.py", folder, "--steps", "2"]
    experiment = "configs/experiments/visual_tiny.yaml"
    changes = [
        f"model_name_or_path={folder}",
        f"output_dir={tmp_path}/run",
        "max_steps=1",
        "eval_num_problems=4",
    ]
    train = [sys.executable, "-m", "grpo_gym.cli", "train", experiment, *changes]
    for command in (tool, train):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "processor_config.json").is_file()
