"""Tool use and several turns, end to end: reward rises with a tool, and turns go through the real vf-vllm."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_trainer
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.rollouts.chat import ChatRenderer
from tests.end_to_end.test_training_with_server import run, training_log
from tests.training.test_multi_turn_training import second_try

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def warm_model(tmp_path_factory):
    """The embedded model after tools/warm_start_calculator.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import warm_start_calculator as warm_start
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_PATH)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    examples = warm_start.demonstrations(ChatRenderer(tokenizer), 1920, share_of_calls=0.5, seed=0)
    warm_start.train(model, examples, batch_size=16, learning_rate=1.5e-3)
    folder = tmp_path_factory.mktemp("warm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_reward_rises_with_the_use_of_a_tool(tmp_path, warm_model):
    settings = [
        f"model.model_name_or_path={warm_model}", f"output_dir={tmp_path}", "report_to=none",
        "eval_on_start=false", "eval_strategy=no", "disable_tqdm=true", "num_completions_to_print=0",
        "save_strategy=no",
    ]  # fmt: skip
    trainer = build_trainer(load_experiment(ROOT / "configs/experiments/calculator_tiny.yaml", settings))
    trainer.train()
    steps = [e for e in trainer.state.log_history if "loss" in e]
    early, late = steps[:4], steps[-5:]

    def mean(entries, name):
        return sum(entry[name] for entry in entries) / len(entries)

    assert mean(late, "reward") > mean(early, "reward") + 0.1
    assert mean(late, "rewards/calculate_calls/mean") > mean(early, "rewards/calculate_calls/mean") + 0.1
    assert all(entry["sampling/sampling_logp_difference/max"] < 1e-3 for entry in steps)
    assert all(entry["rollouts/failed"] == 0 for entry in steps)
    rollouts = [r for group in trainer.last_groups.groups for r in group.rollouts]
    with_call = next(r for r in rollouts if r.metrics["calculate_calls"] == 1 and r.reward == 1)
    written = [i for i, m in zip(with_call.completion_ids, with_call.loss_mask, strict=True) if m == 0]
    assert "<tool_response>" in trainer.preflight.tokenizer.decode(written)


def test_turns_through_a_real_server_agree_with_the_trainer(server, tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path), report_to="none", per_device_train_batch_size=32, num_generations=8,
        max_completion_length=160, max_steps=2, learning_rate=1e-4, disable_tqdm=True, save_strategy="no",
        use_vllm=True, vllm_server_base_url=server.base_url, eval_num_problems=8, num_completions_to_print=0,
        max_staleness=0,
    )  # fmt: skip
    trainer = GRPOTrainer("tiny", second_try(), args)
    trainer.train()
    rollouts = [r for group in trainer.last_groups.groups for r in group.rollouts]
    two_turns = [r for r in rollouts if 0 in r.loss_mask]
    assert two_turns
    for rollout in two_turns:
        assert rollout.loss_mask[0] == rollout.loss_mask[-1] == 1
    for entry in training_log(tmp_path):
        assert entry["sampling/sampling_logp_difference/max"] < 0.02
        assert entry["rollouts/failed"] == 0


def test_vf_eval_of_a_tool_environment(server, tmp_path):
    """vf-vllm offers tools to other clients, too: --enable-auto-tool-choice --tool-call-parser hermes."""
    arguments = json.dumps({"num_train_examples": 8, "num_eval_examples": 4, "operators": ["*"]})
    run(
        [
            "vf-eval", "calculator-tools", "-m", "tiny", "-b", f"{server.base_url}/v1", "-k", "UNUSED_KEY",
            "-n", "2", "-r", "2", "-t", "96", "-T", "1.0", "-a", arguments, "-s", "-o", str(tmp_path),
            "--disable-tui",
        ]
    )  # fmt: skip
    (results,) = tmp_path.rglob("results.jsonl")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 4
    assert all(not row.get("error") for row in rows)
