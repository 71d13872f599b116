"""Run by every process of a launch: train on fixed rollouts, one scenario after the other, and save the weights.

accelerate launch --config-file configs/zero3.yaml --num-processes 2 tests/end_to_end/launch_modes.py OUT sgd lora
"""

import json
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import verifiers as vf
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.rollouts.source import StepRollouts
from grpo_gym.rollouts.types import Rollout, RolloutGroup
from grpo_gym.training.weights import iter_full_weights

NUM_GENERATIONS = 4
SGD = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
SCENARIOS = {
    # The gradient itself, over several micro-batches: with SGD it is the difference of the weights.
    "sgd": {**SGD, "max_steps": 1},
    # The same step over the same rollouts: accumulation is how many completions a step has, not how they are weighed.
    "accumulated": {**SGD, "max_steps": 1, "gradient_accumulation_steps": 2},
    # Clipping by the norm over all shards, a reference model, old log-probs, activations computed again.
    "adamw": {
        "max_steps": 2,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "beta": 0.1,
        "gradient_checkpointing": True,
    },
    "lora": {**SGD, "max_steps": 2, "learning_rate": 3.0, "max_grad_norm": 0.5, "beta": 0.1},
    # One rollout of one group has something to teach: all ranks but one have nothing to do.
    "lonely": {**SGD, "max_steps": 1, "mask_truncated_completions": True},
}


def make_rollout(rng, prompt_ids, reward, is_truncated=False):
    length = rng.choice([1, 5, 20, 60])
    return Rollout(
        prompt_ids=prompt_ids,
        completion_ids=[rng.randrange(20, 900) for _ in range(length)],
        sampler_logprobs=[-14.0 - 2.0 * rng.random() for _ in range(length)],  # near the tiny model's
        loss_mask=[1] * length,
        reward=reward,
        finish_reason="length" if is_truncated else "stop",
    )


def fixed_rollouts(is_lonely):
    """Five groups of uneven size, one without spread, one with a rollout that failed."""
    rng = random.Random(0)
    groups = []
    for index in range(5):
        prompt = [rng.randrange(20, 900) for _ in range(rng.choice([3, 17, 40]))]
        rewards = [0.5] * NUM_GENERATIONS if index == 1 else [rng.random() for _ in range(NUM_GENERATIONS)]
        if index == 3:
            rewards[2] = None
        rollouts = [make_rollout(rng, prompt, reward, is_lonely) for reward in rewards]
        groups.append(RolloutGroup(index, "fixed", "", "", rollouts))
    if is_lonely:
        groups[0].rollouts[1].finish_reason = "stop"
    return StepRollouts(groups, seconds=0.1, num_generated=len(groups))


class FixedRolloutsTrainer(GRPOTrainer):
    """Never samples."""

    step: StepRollouts

    def _current_batch(self, model):
        if self.state.global_step % self.args.num_iterations == 0:
            self.use_rollouts(self.step)
        return self._batch


def an_environment():
    rows = Dataset.from_dict({"question": ["a", "b"] * 8, "answer": ["c", "d"] * 8})
    return vf.SingleTurnEnv(dataset=rows, eval_dataset=rows, rubric=vf.Rubric([lambda completion: 1.0]))


def run(name, out, **more):
    settings = {
        "output_dir": str(out), "report_to": "none", "per_device_train_batch_size": NUM_GENERATIONS,
        "num_generations": NUM_GENERATIONS, "max_completion_length": 64, "max_tokens_per_micro_batch": 100,
        "disable_tqdm": True, "log_completions": False, "save_strategy": "no", "seed": 3,
        "lr_scheduler_type": "constant", "logprob_chunk_size": 32,
    }  # fmt: skip
    args = GRPOConfig(**{**settings, **SCENARIOS[name], **more})
    peft_config = LORA if name == "lora" else None
    trainer = FixedRolloutsTrainer("tiny", an_environment(), args, peft_config=peft_config)
    trainer.step = fixed_rollouts(is_lonely=name == "lonely")
    trainer.train(resume_from_checkpoint=more.get("resume_from_checkpoint"))
    return trainer


def how_sharded(model):
    parameters = list(model.parameters())
    if any(hasattr(p, "ds_id") for p in parameters):
        return "zero3"
    if any(isinstance(p, DTensor) for p in parameters):
        return "fsdp2"
    return type(model).__name__


def report(trainer, out):
    """What the comparison needs, from rank 0: whole weights as a server would get them, and the logs."""
    weights = {name: weight.clone().cpu() for name, weight in iter_full_weights(trainer.model_wrapped, 2**20)}
    if trainer.is_world_process_zero():
        torch.save(weights, out / "weights.pt")
        names = ("loss", "grad_norm", "entropy", "sampling/importance_sampling_ratio/mean")
        logs = [{n: entry[n] for n in names} for entry in trainer.state.log_history if "loss" in entry]
        facts = {
            "sharded": how_sharded(trainer.model_wrapped),
            "ranks": trainer.accelerator.num_processes,
            "logs": logs,
        }
        (out / "report.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for scenario in names:
        out = Path(folder) / scenario
        report(run(scenario, out), out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
