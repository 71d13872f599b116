"""Every key of configs/experiments/math_qwen2.5_1.5b.yaml is walked and followed to the place where it acts."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from math_reasoning import sources
from transformers.integrations import TensorBoardCallback

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args, build_trainer, model_name
from grpo_gym.inference import colocate
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training import rollout_setup

FILE = Path(__file__).parents[2] / "configs/experiments/math_qwen2.5_1.5b.yaml"


class FakeServer:
    """Stands where the colocated vf-vllm would be; keeps what it was made with."""

    base_url = "http://127.0.0.1:1"

    def __init__(self, model, **settings):
        self.model, self.settings = model, settings
        self.command = colocate.ColocatedServer(model, **settings)._command

    def start(self, timeout):
        self.timeout = timeout

    def flag(self, name):
        return self.command[self.command.index(name) + 1]


def long_tiny_model(folder):
    """The embedded model with room for 512 + 2048 tokens."""
    shutil.copytree(TINY_MODEL_PATH, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The experiment's own trainer, with a small model, rows for the Hub's dataset, and no server started."""
    tmp = tmp_path_factory.mktemp("math")
    asked = []

    def load_dataset(path, name=None, split=None):
        asked.append((path, split))
        rows = [
            {"question": f"What is {i} + 1?", "answer_correct": str(i + 1), "answer": "no"}
            for i in range(900)
        ]
        return Dataset.from_list(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load_dataset", load_dataset)
        patch.setattr(colocate, "_has_gpu", lambda: True)
        patch.setattr(rollout_setup, "ColocatedServer", FakeServer)
        patch.setattr(
            rollout_setup,
            "ColocatedBackend",
            lambda server, **kwargs: SimpleNamespace(
                server=server, sampler=object(), close=lambda: None, **kwargs
            ),
        )
        model = long_tiny_model(tmp / "model")
        trainer = build_trainer(
            load_experiment(FILE, [f"model.model_name_or_path={model}", f"output_dir={tmp}/out"])
        )
        trainer.create_optimizer_and_scheduler(num_training_steps=trainer.args.max_steps)
        rollouts = rollout_setup.build_rollouts(trainer)
        # The optimizer of a real run goes through all of its steps.
        rates = [trainer.lr_scheduler.get_last_lr()[0]]
        for _ in range(trainer.args.max_steps):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            rates.append(trainer.lr_scheduler.get_last_lr()[0])
        experiment = load_experiment(FILE)
        yield SimpleNamespace(
            experiment=experiment,
            trainer=trainer,
            args=trainer.args,
            written=build_args(experiment),
            source=rollouts.source,
            server=rollouts.backend.server,
            rates=rates,
            asked=asked,
            rubric=trainer.env.rubric.rubrics[0],
        )
        rollouts.source.engine._loop.call_soon_threadsafe(rollouts.source.engine._loop.stop)


def schedule(run):
    """The name of the schedule whose values the learning rate took."""
    steps, warmup, peak = run.args.max_steps, int(run.args.warmup_steps), max(run.rates)
    middle = warmup + (steps - warmup) // 4
    cosine = peak * 0.5 * (1 + math.cos(math.pi * (middle - warmup) / (steps - warmup)))
    return "cosine" if math.isclose(run.rates[middle], cosine) and run.rates[-1] < peak / 1e6 else "another"


# Where each setting acts, seen in the objects of the run.
PLACES = {
    "model.model_name_or_path": lambda run: model_name(run.experiment),
    "data.environment": lambda run: run.trainer.env.env_id,
    "data.env_args.dataset": lambda run: run.asked[0][0],
    "data.env_args.split": lambda run: run.asked[0][1],
    "data.env_args.field_mapping.question_field": lambda run: (
        "question" if run.trainer.env.get_dataset()["question"][0].startswith("What is") else None
    ),
    "data.env_args.field_mapping.answer_field": lambda run: (
        "answer_correct" if run.trainer.env.get_dataset()["answer"][0].isdigit() else None
    ),
    "data.env_args.num_eval_examples": lambda run: len(run.trainer.env.get_eval_dataset()),
    "data.env_args.think": lambda run: "think" in run.rubric.parser.get_fields(),
    "data.env_args.format_weight": lambda run: run.rubric.weights[1],
    "data.env_args.deadline": lambda run: run.rubric.pool.deadline,
    "data.env_args.num_workers": lambda run: run.rubric.pool.num_workers,
    "rewards": lambda run: [] if run.rubric.funcs[0].__name__ == "accuracy_reward" else None,
    "training.run_name": lambda run: run.written.run_name,
    "training.per_device_train_batch_size": lambda run: (
        run.source.settings.prompts_per_step * run.source.settings.num_generations
    ),
    "training.gradient_accumulation_steps": lambda run: (
        run.written.completions_per_step // run.written.per_device_train_batch_size
    ),
    "training.num_generations": lambda run: run.source.settings.num_generations,
    "training.max_prompt_length": lambda run: run.trainer.preflight.max_prompt_len,
    "training.max_completion_length": lambda run: run.source.settings.params.max_tokens,
    "training.temperature": lambda run: run.source.settings.params.temperature,
    "training.top_p": lambda run: run.source.settings.params.top_p,
    "training.seed": lambda run: run.source.stream._seed,
    "training.max_steps": lambda run: len(run.rates) - 1,
    "training.learning_rate": lambda run: max(run.rates),
    "training.lr_scheduler_type": schedule,
    "training.warmup_steps": lambda run: run.rates.index(max(run.rates)),
    "training.max_grad_norm": lambda run: run.args.max_grad_norm,
    "training.loss_type": lambda run: run.trainer.policy_loss.args.loss_type,
    "training.epsilon": lambda run: run.trainer.policy_loss.args.epsilon,
    "training.epsilon_high": lambda run: run.trainer.policy_loss.args.epsilon_high,
    "training.beta": lambda run: run.trainer.policy_loss.reference and run.trainer.policy_loss.args.beta,
    "training.torch_dtype": lambda run: str(run.trainer.model.dtype).removeprefix("torch."),
    "training.attn_implementation": lambda run: run.trainer.model.config._attn_implementation.split("_")[-1],
    "training.gradient_checkpointing": lambda run: run.args.gradient_checkpointing,
    "training.max_tokens_per_micro_batch": lambda run: (
        run.trainer.policy_loss.args.max_tokens_per_micro_batch
    ),
    "training.logprob_chunk_size": lambda run: run.trainer.policy_loss.args.logprob_chunk_size,
    "training.use_vllm": lambda run: run.server is not None,
    "training.vllm_mode": lambda run: "colocate" if isinstance(run.server, FakeServer) else None,
    "training.vllm_gpu_memory_utilization": lambda run: float(run.server.flag("--gpu-memory-utilization")),
    "training.eval_on_start": lambda run: run.args.eval_on_start,
    "training.eval_num_problems": lambda run: len(run.trainer.preflight.eval_rows),
    "training.eval_strategy": lambda run: run.args.eval_strategy,
    "training.eval_steps": lambda run: run.args.eval_steps,
    "training.save_steps": lambda run: run.args.save_steps,
    "training.logging_steps": lambda run: run.args.logging_steps,
    "training.report_to": lambda run: (
        "tensorboard"
        if any(isinstance(c, TensorBoardCallback) for c in run.trainer.callback_handler.callbacks)
        else None
    ),
    "training.push_to_hub": lambda run: run.args.push_to_hub,
    "training.hub_strategy": lambda run: run.args.hub_strategy,
    "training.hub_private_repo": lambda run: run.args.hub_private_repo,
}


def leaves(tree, path=()):
    """Every setting as (dotted path, value); lists are values."""
    if not isinstance(tree, dict):
        yield ".".join(path), tree
        return
    for key, value in tree.items():
        yield from leaves(value, (*path, key))


WALKED = dict(leaves(load_experiment(FILE).to_dict()))


@pytest.mark.parametrize("path", WALKED)
def test_every_key_reaches_its_place(run, path):
    assert path in PLACES, f"{path} is set, but nobody has said where it acts"
    assert PLACES[path](run) == WALKED[path]


def test_every_key_written_in_the_file_is_walked():
    """Composition and normalization lose none: keys of `model` that belong to training are found there."""
    names = {path.split(".", 1)[-1]: value for path, value in WALKED.items()}
    for path, value in leaves({k: v for k, v in yaml.safe_load(FILE.read_text()).items() if k != "_base_"}):
        key = path.split(".", 1)[-1]
        assert key in names
        assert names[key] == (float(value) if key == "learning_rate" else value)


def test_the_numbers_are_the_guides(run):
    args = run.written
    assert (args.beta, args.num_generations, args.learning_rate) == (0.001, 16, 5e-7)
    assert (args.max_prompt_length, args.max_completion_length) == (512, 2048)
    assert (args.lr_scheduler_type, args.vllm_mode, args.vllm_gpu_memory_utilization) == (
        "cosine",
        "colocate",
        0.5,
    )
    assert run.server.flag("--max-model-len") == str(512 + 2048)


def test_a_key_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match="num_generation"):
        load_experiment(FILE, ["training.num_generation=8"])
