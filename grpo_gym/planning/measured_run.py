"""A short real training run on a CPU, with its seconds and its peak memory: what rates are fitted to.

    python -m grpo_gym.planning.measured_run '{"hidden_size": 256, ...}'     # fields of RunSetting; prints JSON

The model is a random Llama of the given shape, so that completions run to their full length; sampling, scoring,
loss, backward and optimizer are those of any in-process run of `GRPOTrainer`.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_gym.planning.shapes import ModelShape
from grpo_gym.planning.workload import Workload

_ANSWER = "measured: "


@dataclass(frozen=True, slots=True)
class RunSetting:
    """One run: a shape, and the numbers of its steps. `completions` are those of all processes."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    completions: int
    group_size: int
    prompt_words: int
    completion_tokens: int
    steps: int = 4
    threads: int = 1
    processes: int = 1

    @property
    def shape(self) -> ModelShape:
        """The shape of the model."""
        return ModelShape(
            self.hidden_size,
            self.intermediate_size,
            self.num_layers,
            self.num_heads,
            self.num_kv_heads,
            self.hidden_size // self.num_heads,
            self.vocab_size,
            tied=True,
        )

    def workload(self, prompt_tokens: float) -> Workload:
        """One step of it, in float32, with the trainer's default packing."""
        return Workload(
            shape=self.shape,
            completions=self.completions,
            group_size=self.group_size,
            prompt_tokens=prompt_tokens,
            completion_tokens=self.completion_tokens,
            longest_completion=self.completion_tokens,
            max_completion_length=self.completion_tokens,
            prefill_tokens=4096,
            compute_width=4,
            serve_width=4,
            uses_server=False,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run took.

    Attributes:
        rollout_seconds: median over the steps after the first.
        train_seconds: forward and backward, likewise.
        step_seconds: whole steps, likewise.
        prompt_tokens: mean length of its prompts.
        baseline_bytes: resident before the model was made.
        peak_bytes: largest resident size afterwards.
    """

    rollout_seconds: float
    train_seconds: float
    step_seconds: float
    prompt_tokens: float
    baseline_bytes: float
    peak_bytes: float

    @property
    def rest_seconds(self) -> float:
        """Optimizer, logging, bookkeeping."""
        return max(0.0, self.step_seconds - self.rollout_seconds - self.train_seconds)


def measure(setting: RunSetting) -> Measured:
    """Run the setting in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes)]
    program = ["-m", "grpo_gym.planning.measured_run", json.dumps(asdict(setting))]
    command = [sys.executable, *(launcher if setting.processes > 1 else []), *program]
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"the run of {setting} failed: {done.stderr[-2000:]}")
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    return Measured(**json.loads(answers[-1].removeprefix(_ANSWER)))


def run(setting: RunSetting) -> Measured:
    """Train in this process."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from grpo_gym import GRPOConfig, GRPOTrainer
    from grpo_gym.models import TINY_MODEL_PATH

    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    env, clock = _make_env(setting), _make_clock()
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_PATH)
    baseline = _reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
            per_device_train_batch_size=setting.completions // setting.processes, num_generations=setting.group_size,
            max_completion_length=setting.completion_tokens, max_steps=setting.steps, learning_rate=1e-5,
            num_completions_to_print=0, eval_on_start=False,
        )  # fmt: skip
        shape = setting.shape
        config = LlamaConfig(
            hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads, vocab_size=shape.vocab_size, tie_word_embeddings=True,
            max_position_embeddings=2048, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        trainer = GRPOTrainer(model, env, args, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
        peak = _status_bytes("VmHWM")
        lengths = [len(trainer.preflight.renderer.prompt_ids(row["prompt"])) for row in _rows(trainer)]
    return Measured(
        rollout_seconds=statistics.median(clock.rollout[1:]),
        train_seconds=statistics.median(clock.train[1:]),
        step_seconds=statistics.median(clock.steps[1:]),
        prompt_tokens=sum(lengths) / len(lengths),
        baseline_bytes=float(baseline),
        peak_bytes=float(peak),
    )


def _make_env(setting: RunSetting) -> Any:
    import verifiers as vf
    from datasets import Dataset

    questions = [f"Item {i}: " + " ".join(["legs"] * setting.prompt_words) for i in range(256)]
    dataset = Dataset.from_list([{"question": question, "answer": "0"} for question in questions])

    def spread(completion: vf.Messages, **_: Any) -> float:
        """Different for different texts, so that every group is trained on."""
        message: Any = completion[-1]
        text = str(message["content"] if isinstance(message, dict) else message.content)
        return sum(map(ord, text)) % 997 / 997

    return vf.SingleTurnEnv(
        dataset=dataset, eval_dataset=dataset.select(range(2)), rubric=vf.Rubric([spread])
    )


def _make_clock() -> Any:
    import time

    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds of every step and, from the log, of its parts."""

        def __init__(self) -> None:
            self.steps: list[float] = []
            self.rollout: list[float] = []
            self.train: list[float] = []
            self._start = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self._start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            self.steps.append(now - self._start)
            self._start = now

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            logs = kwargs["logs"]
            if "time/rollout" in logs:
                self.rollout.append(logs["time/rollout"])
                self.train.append(logs["time/train"])

    return Clock()


def _rows(trainer: Any) -> list[Any]:
    from grpo_gym.rollouts.prompts import EnvironmentRows

    rows = EnvironmentRows(trainer.env, "train")
    return [rows[i] for i in range(16)]


def _reset_peak() -> int:
    """Forget the high-water mark of resident memory; returns the resident bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{name} is not in /proc/self/status: calibration needs Linux.")


if __name__ == "__main__":
    answer = run(RunSetting(**json.loads(sys.argv[1])))
    if os.environ.get("RANK", "0") == "0":
        print(_ANSWER + json.dumps(asdict(answer)), flush=True)
