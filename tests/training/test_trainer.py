"""The trainer end to end in one process, with the embedded model and the in-process generator."""

import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import verifiers as vf
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training import model_loading
from grpo_gym.training import trainer as trainer_module

ANIMALS = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}


def legs_env(count=64):
    gym = [{"name": "leg_counting", "weight": 1.0, "config": ANIMALS}]
    return vf.ReasoningGymEnv(gym=gym, num_train_examples=count, num_eval_examples=16)


def config(tmp_path, **kwargs):
    defaults = {
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 64,
        "max_steps": 2,
        "learning_rate": 2e-4,
        "eval_num_problems": 16,
        "disable_tqdm": True,
        "num_completions_to_print": 0,
        "save_strategy": "no",
        "seed": 0,
    }
    return GRPOConfig(**{**defaults, **kwargs})


def train(tmp_path, env=None, resume=None, peft_config=None, **kwargs):
    trainer = GRPOTrainer("tiny", env or legs_env(), config(tmp_path, **kwargs), peft_config=peft_config)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_reward_rises(tmp_path):
    """Twenty steps are enough to see it: mean reward of the last steps against the first ones."""
    trainer = train(
        tmp_path, legs_env(400), max_steps=20, per_device_train_batch_size=128, num_generations=16
    )
    rewards = [entry["reward"] for entry in logs(trainer)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_a_run_leaves_a_model_logs_and_samples(tmp_path):
    trainer = train(tmp_path, report_to="tensorboard", eval_on_start=True)
    out = Path(trainer.args.output_dir)
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).chat_template
    for name, parameter in reloaded.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name))
    assert list((out / "runs").rglob("events.out.tfevents*"))
    table = pq.read_table(out / "completions" / "step_000000.parquet")
    assert table.num_rows == 32
    evaluations = [e for e in trainer.state.log_history if "eval_accuracy" in e]
    assert [e["step"] for e in evaluations] == [0, 2]


def test_metrics_have_trls_names_and_are_finite(tmp_path):
    trainer = train(tmp_path, beta=0.01, num_iterations=2, max_steps=4)
    expected = {
        "reward", "reward_std", "frac_reward_zero_std", "rewards/check_answer_reward_func/mean",
        "completions/mean_length", "completions/clipped_ratio", "entropy", "kl", "clip_ratio/low_mean",
        "clip_ratio/high_mean", "clip_ratio/region_mean", "sampling/sampling_logp_difference/mean",
        "sampling/importance_sampling_ratio/mean", "mismatch_kl", "tokens_per_second", "time/rollout",
        "time/train", "time/sync", "informative_fraction",
    }  # fmt: skip
    for entry in logs(trainer):
        assert expected <= set(entry)
        assert all(math.isfinite(value) for value in entry.values())


def test_sampler_and_trainer_agree_on_every_token(tmp_path):
    trainer = train(tmp_path)
    for entry in logs(trainer):
        assert entry["sampling/sampling_logp_difference/max"] < 1e-3
        assert entry["mismatch_kl"] < 1e-6


def test_same_seed_same_weights_to_the_bit(tmp_path):
    first, second = (weights(train(tmp_path / name, max_steps=3)) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("num_iterations", "stop_after"), [(1, 2), (2, 3)])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, num_iterations, stop_after):
    settings = {
        "max_steps": 5,
        "num_iterations": num_iterations,
        "save_strategy": "steps",
        "save_steps": stop_after,
    }
    whole = train(tmp_path / "whole", **settings)
    checkpoint = Path(whole.args.output_dir) / f"checkpoint-{stop_after}"
    resumed = train(tmp_path / "resumed", resume=str(checkpoint), **settings)
    assert resumed.state.global_step == 5
    expected, actual = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert [e["reward"] for e in logs(resumed)][-1] == [e["reward"] for e in logs(whole)][-1]


def test_a_run_that_is_done_stays_as_it_is(tmp_path):
    """A job that is queued again after its last step runs the same command."""
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    done = train(tmp_path, **settings)
    again = train(tmp_path, resume="auto", **settings)
    assert again.state.global_step == 2
    expected, actual = weights(done), weights(again)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_the_packing_budget_does_not_change_the_step(tmp_path):
    large = train(tmp_path / "a", max_steps=1)
    small = train(tmp_path / "b", max_steps=1, max_tokens_per_micro_batch=400)
    separate = train(tmp_path / "c", max_steps=1, shared_prefix=False)
    for other in (small, separate):
        for name, value in weights(large).items():
            # One Adam step of lr 2e-4: rounding may flip the sign of a gradient that is almost 0.
            assert (value - weights(other)[name]).abs().mean() < 1e-6


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_every_loss_trains(tmp_path, loss_type):
    before = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    trainer = train(tmp_path, loss_type=loss_type, max_steps=1)
    moved = [
        name for name, p in before.named_parameters() if not torch.equal(p, trainer.model.get_parameter(name))
    ]
    assert moved


def test_lora_trains_the_adapter_only_and_its_reference_is_the_model_without_it(tmp_path):
    from peft import LoraConfig

    base = dict(AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH).named_parameters())
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = train(tmp_path, peft_config=lora, beta=0.05, max_steps=3, learning_rate=1e-2)
    assert trainer.policy_loss.reference is None
    kls = [entry["kl"] for entry in logs(trainer)]
    assert kls[0] == pytest.approx(0.0, abs=1e-6)
    assert kls[-1] > 1e-5
    for name, parameter in trainer.model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(parameter, base[plain])
    assert (Path(trainer.args.output_dir) / "adapter_config.json").is_file()


def test_no_reference_is_made_when_beta_is_zero(tmp_path):
    assert GRPOTrainer("tiny", legs_env(), config(tmp_path)).policy_loss.reference is None
    assert GRPOTrainer("tiny", legs_env(), config(tmp_path, beta=0.1)).policy_loss.reference is not None


def test_a_reward_that_is_always_the_same_leaves_the_weights_alone(tmp_path):
    def always(completion):
        return 1.0

    data = Dataset.from_dict({"question": ["a", "b", "c", "d"], "answer": ["", "", "", ""]})
    env = vf.SingleTurnEnv(dataset=data, eval_dataset=data, rubric=vf.Rubric([always]))
    trainer = train(tmp_path, env, max_steps=1, weight_decay=0.0)
    before = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    assert all(torch.equal(p, trainer.model.get_parameter(name)) for name, p in before.named_parameters())
    assert logs(trainer)[0]["frac_reward_zero_std"] == 1.0


def test_failing_scorer_is_counted_and_its_rollouts_are_left_out(tmp_path):
    def sometimes(completion, state):
        if len(completion[-1]["content"]) % 2:
            raise RuntimeError("scorer broke")
        return float(len(completion[-1]["content"]) % 4)

    data = Dataset.from_dict({"question": ["1+1?", "2+2?", "3+3?", "4+4?"], "answer": [""] * 4})
    env = vf.SingleTurnEnv(dataset=data, eval_dataset=data, rubric=vf.Rubric([sometimes]))
    trainer = train(tmp_path, env, max_steps=1)
    failed = logs(trainer)[0]["rollouts/failed/scoring_failed"]
    assert 0 < failed < 32
    assert logs(trainer)[0]["rollouts/failed/scoring_failed/sometimes"] == failed
    table = pq.read_table(Path(trainer.args.output_dir) / "completions" / "step_000000.parquet").to_pylist()
    assert sum(row["reward"] is None for row in table) == failed


class LoadedTooEarlyError(Exception):
    """The weights were loaded before the mistake was found."""


def too_early(*args, **kwargs):
    raise LoadedTooEarlyError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_completion_length": 5000}, "leaves no room for a prompt"),
        ({"max_prompt_length": 3}, "none of the 64 prompts fits"),
        ({"use_vllm": True, "vllm_server_port": 1, "vllm_server_timeout": 1.0}, "127.0.0.1:1"),
    ],
)
def test_mistakes_are_found_before_weights_are_loaded(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(model_loading, "load_model", too_early)
    with pytest.raises((ValueError, ConnectionError, TimeoutError), match=message) as error:
        GRPOTrainer("tiny", legs_env(), config(tmp_path, **settings))
    assert "\n" not in str(error.value)


def test_missing_chat_template(tmp_path, monkeypatch):
    monkeypatch.setattr(model_loading, "load_model", too_early)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_PATH)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        GRPOTrainer("tiny", legs_env(), config(tmp_path), processing_class=tokenizer)


def test_dataset_without_a_question(tmp_path, monkeypatch):
    monkeypatch.setattr(model_loading, "load_model", too_early)
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "x"}]] * 4, "answer": ["1"] * 4})
    env = vf.SingleTurnEnv(dataset=data, rubric=vf.Rubric([lambda completion: 1.0]))
    env.dataset = env.dataset.rename_column("prompt", "text")
    with pytest.raises(ValueError, match=r"columns .*text.* no 'prompt'"):
        GRPOTrainer("tiny", env, config(tmp_path))


def test_cutting_the_distribution_with_the_correction_on_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="top_p cuts the distribution"):
        GRPOTrainer("tiny", legs_env(), config(tmp_path, top_p=0.9))


def test_over_long_prompts_are_left_out_and_counted(tmp_path):
    env = legs_env()
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_PATH)
    lengths = sorted(
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"])
        for row in env.get_dataset()
    )
    trainer = train(tmp_path, env, max_prompt_length=lengths[32], max_steps=4)
    assert logs(trainer)[-1]["prompts/skipped_too_long"] > 0
    state = json.loads(json.dumps(trainer.preflight.stream.state_dict()))
    assert state["num_skipped"] > 0


def test_the_chat_template_gets_its_arguments(tmp_path):
    """As Qwen3's `enable_thinking: false`, which begins the answer with an empty thought."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_PATH)
    tokenizer.chat_template += "{%- if enable_thinking is false -%}{{- '<think></think>' -}}{%- endif -%}"
    args = config(tmp_path, max_steps=1, chat_template_kwargs={"enable_thinking": False})
    trainer = GRPOTrainer("tiny", legs_env(), args, processing_class=tokenizer)
    trainer.train()
    for group in trainer.last_groups.groups:
        assert tokenizer.decode(group.rollouts[0].prompt_ids).endswith("<|assistant|><think></think>")


def test_evaluate_before_and_after_training_and_train_again_on_the_same_environment(tmp_path):
    env = legs_env()
    trainer = GRPOTrainer("tiny", env, config(tmp_path, max_steps=1))
    before = trainer.evaluate()
    assert trainer.evaluate() == before
    trainer.train()
    assert 0.0 <= trainer.evaluate()["eval_accuracy"] <= 1.0
    again = train(tmp_path / "again", env, max_steps=1)
    assert again.state.global_step == 1


def test_resuming_without_a_checkpoint_says_so(tmp_path):
    trainer = GRPOTrainer("tiny", legs_env(), config(tmp_path))
    with pytest.raises(ValueError, match="has no checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_an_environment_without_held_out_problems_is_named(tmp_path):
    data = Dataset.from_dict({"question": ["1+1?", "2+2?"], "answer": ["2", "4"]})
    env = vf.SingleTurnEnv(dataset=data, rubric=vf.Rubric([lambda completion: 1.0]))
    with pytest.warns(UserWarning, match="TRAINING problems"):
        GRPOTrainer("tiny", env, config(tmp_path))


def test_writing_over_the_checkpoint_file_does_not_reach_the_policy(tmp_path):
    """Seen in a real run: the file was replaced at step 52, and the policy was the untrained one again."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_MODEL_PATH, folder)
    model = model_loading.load_model(str(folder), config(tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    content = (folder / "model.safetensors").read_bytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(content)
    assert all(torch.equal(expected[name], p) for name, p in model.named_parameters())


def test_adapters_of_the_head_are_refused_before_training_with_sharded_weights(tmp_path, monkeypatch):
    lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    monkeypatch.setattr(trainer_module, "is_sharded", lambda accelerator: True)
    with pytest.raises(ValueError, match="leave lm_head out"):
        GRPOTrainer("tiny", legs_env(), config(tmp_path), peft_config=lora)
