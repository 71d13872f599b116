"""Whole training runs on a CPU: this `GRPOTrainer` against TRL's, same prompts and rewards.

python -m benchmarks end_to_end                       # the embedded model, in process
python -m benchmarks end_to_end --model smollm2 --rounds 5 --steps 3
python -m benchmarks end_to_end --server              # and this trainer with a vf-vllm on half of the cores
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import reasoning_gym
import torch
import verifiers as vf
from datasets import Dataset
from reasoning_gym.utils import SYSTEM_PROMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.harness import Pairs, Result, Spread, say
from benchmarks.real_server import real_server, split_cores, this_process_on
from grpo_gym.models import resolve_model

ANIMALS = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}
BAR = 0.6
MAX_MODEL_LEN = 640
LABELS = {"ours": "GRPO-Gym", "trl": "TRL", "ours_server": "GRPO-Gym with vf-vllm"}


@dataclass(slots=True)
class Run:
    """A training run: seconds since its start and mean reward at the end of each step, completion tokens."""

    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step but the first, which also warms up."""
        return [b - a for a, b in zip(self.seconds, self.seconds[1:], strict=False)]

    @property
    def seconds_per_step(self) -> float:
        """Mean of `step_seconds`."""
        return sum(self.step_seconds) / len(self.step_seconds)

    def reward_before(self, deadline: float) -> float:
        """Mean reward of the last three steps that ended by `deadline` (of the first step if none did)."""
        finished = [r for s, r in zip(self.seconds, self.rewards, strict=True) if s <= deadline]
        last = finished[-3:] or self.rewards[:1]
        return sum(last) / len(last)


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Fills a `Run` from either trainer: both log TRL's names."""

    def __init__(self) -> None:
        self.run = Run()
        self._start = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The step is done, optimizer included."""
        self.run.seconds.append(time.perf_counter() - self._start)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Keep the step's reward and completion length."""
        logs: dict[str, float] = kwargs["logs"]
        if "reward" in logs:
            self.run.rewards.append(float(logs["reward"]))
            self.run.tokens.append(float(logs.get("completions/mean_length", float("nan"))))


RunProgram = Callable[[argparse.Namespace, int], Run]


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `end_to_end`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks end_to_end")
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a directory")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved pairs of runs, a seed each")
    parser.add_argument("--steps", type=int, default=6, help="steps per run; the first is not timed")
    parser.add_argument("--completions", type=int, default=64, help="per optimizer step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--device-batch", type=int, help="per_device_train_batch_size (default: all)")
    parser.add_argument("--max-completion-length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--server", action="store_true", help="also run this trainer with a vf-vllm server")
    parser.add_argument("--name", help="name of the result files")
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Alternate runs of both trainers; results are written after every round."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    name = args.name or ("end_to_end" if args.model == "tiny" else f"end_to_end_{Path(args.model).name}")
    name += "_server" if args.server and not args.name else ""
    with all_programs(args) as programs:
        runs: dict[str, list[Run]] = {program: [] for program in programs}
        for seed in range(args.rounds):
            for program in sorted(programs, reverse=seed % 2 == 1):
                runs[program].append(programs[program](args, seed))
                gc.collect()
            say(f"round {seed}: " + ", ".join(f"{n} {r[-1].seconds_per_step:.2f}" for n, r in runs.items()))
            summarize(Result(name, ["end_to_end", *argv], notes=_notes(args)), runs, args)


@contextlib.contextmanager
def all_programs(args: argparse.Namespace) -> Iterator[dict[str, RunProgram]]:
    """What is compared, by name; a server runs as long as the context where one is asked for."""
    programs: dict[str, RunProgram] = {"ours": run_ours, "trl": run_trl}
    if not args.server:
        yield programs
        return
    server_cores, trainer_cores = split_cores()
    with real_server(resolve_model(args.model), MAX_MODEL_LEN, server_cores) as server:

        def run_with_server(args: argparse.Namespace, seed: int) -> Run:
            with this_process_on(trainer_cores):
                return run_ours(args, seed, use_vllm=True, vllm_server_base_url=server.base_url)

        yield {**programs, "ours_server": run_with_server}


def run_ours(args: argparse.Namespace, seed: int, **settings: Any) -> Run:
    """A run of this trainer; `settings` say where its rollouts come from when not from this process."""
    from grpo_gym import GRPOConfig, GRPOTrainer

    clock = StepClock()
    env = vf.SingleTurnEnv(dataset=questions(seed), rubric=vf.Rubric([env_reward]))
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            eval_on_start=False, log_completions=False, importance_sampling_mode="none",
            **_shared_settings(args, seed, folder), **settings,
        )  # fmt: skip
        model, tokenizer = _load(args.model)
        GRPOTrainer(model, env, config, processing_class=tokenizer, callbacks=[clock]).train()
    return clock.run


def run_trl(args: argparse.Namespace, seed: int) -> Run:
    """A run of TRL's trainer."""
    import trl

    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(gradient_checkpointing=False, **_shared_settings(args, seed, folder))
        model, tokenizer = _load(args.model)
        trl.GRPOTrainer(
            model,
            reward_funcs=[_trl_reward],
            args=config,
            train_dataset=_as_conversations(questions(seed)),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    return clock.run


def questions(seed: int, count: int = 512) -> Dataset:
    """Leg counting with Reasoning Gym's default instructions: columns question, answer."""
    entries = reasoning_gym.create_dataset("leg_counting", size=count, seed=seed, **ANIMALS)
    system = SYSTEM_PROMPTS["default"]
    rows = [{"question": f"{system}\n{e['question']}", "answer": str(e["answer"])} for e in entries]
    return Dataset.from_list(rows)


def score(text: str, answer: str) -> float:
    """1 for the right `<answer>`, plus up to 0.1 for letters: every group has spread, so none is skipped."""
    correct = vf.XMLParser(["answer"]).parse_answer(text) == answer
    return float(correct) + 0.1 * sum(c.isalpha() for c in text) / max(1, len(text))


def env_reward(completion: vf.Messages, answer: str) -> float:
    """`score` as a Verifiers reward function."""
    message: Any = completion[-1]
    content = message["content"] if isinstance(message, dict) else message.content
    return score(str(content), answer)


def _trl_reward(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    return [score(c[-1]["content"], a) for c, a in zip(completions, answer, strict=True)]


def _as_conversations(dataset: Dataset) -> Dataset:
    return dataset.map(
        lambda row: {"prompt": [{"role": "user", "content": row["question"]}]}, remove_columns=["question"]
    )


def _load(name: str) -> tuple[Any, Any]:
    path = resolve_model(name)
    return AutoModelForCausalLM.from_pretrained(path, dtype="float32"), AutoTokenizer.from_pretrained(path)


def _shared_settings(args: argparse.Namespace, seed: int, folder: str) -> dict[str, Any]:
    """What both configurations are given: everything that decides how much work there is."""
    device_batch = args.device_batch or args.completions
    return {
        "output_dir": folder,
        "seed": seed,
        "max_steps": args.steps,
        "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": args.completions // device_batch,
        "num_generations": args.group_size,
        "max_completion_length": args.max_completion_length,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def summarize(result: Result, runs: dict[str, list[Run]], args: argparse.Namespace) -> None:
    """Figures, rows and files of the rounds so far."""
    seconds = {name: [run.seconds_per_step for run in each] for name, each in runs.items()}
    pairs = Pairs(seconds["ours"], seconds["trl"])
    shares = [a / b for a, b in zip(pairs.ours, pairs.theirs, strict=True)]
    result.figures = Spread.of(shares).figures("seconds_per_step_over_trl")
    result.figures |= pairs.speed_ratio.figures("speed_ratio")
    if "ours_server" in seconds:
        for other, label in (("trl", "trl"), ("ours", "in_process")):
            server = Pairs(seconds[other], seconds["ours_server"]).speed_ratio
            result.figures |= server.figures(f"seconds_per_step_server_over_{label}")
    deadlines = [min(run.seconds[-1] for run in each) for each in zip(*runs.values(), strict=True)]
    for name, each in runs.items():
        rewards = [run.reward_before(deadline) for run, deadline in zip(each, deadlines, strict=True)]
        tokens = [t for run in each for t in run.tokens]
        result.figures |= Spread.of(seconds[name]).figures(f"seconds_per_step_{name}")
        result.figures |= Spread.of(rewards).figures(f"reward_at_equal_seconds_{name}")
        result.figures[f"mean_completion_tokens_{name}"] = sum(tokens) / max(1, len(tokens))
        result.rows.append(_row(name, seconds[name], rewards, tokens))
    result.details = {
        name: [{"seconds": run.seconds, "rewards": run.rewards, "tokens": run.tokens} for run in each]
        for name, each in runs.items()
    }
    result.write(lambda axes: _plot(axes, runs), args.folder)


def _row(
    name: str, seconds: Sequence[float], rewards: Sequence[float], tokens: Sequence[float]
) -> dict[str, Any]:
    return {
        "program": LABELS[name],
        "seconds per step": str(Spread.of(seconds)),
        "reward at equal seconds": str(Spread.of(rewards)),
        "mean completion tokens": sum(tokens) / max(1, len(tokens)),
    }


def _notes(args: argparse.Namespace) -> list[str]:
    server = [
        "ours_server: a vf-vllm on half of the cores, the trainer on the other half, rollouts of the next step while "
        "this one trains. TRL's server mode cannot run on a CPU: its client sends weights over NCCL only and "
        "refuses another device (`VLLMClient.init_communicator`)."
    ]
    return [
        f"{args.model}, float32, leg_counting; {args.completions} completions per step in groups of "
        f"{args.group_size}, at most {args.max_completion_length} tokens; {args.rounds} interleaved pairs of "
        f"runs of {args.steps} steps, a seed each; the first step of a run is not timed.",
        "A step is rollouts, rewards, loss, backward and optimizer. TRL generates with transformers' "
        "`generate`, its default without vLLM; bf16 and gradient checkpointing are off in both.",
        "Reward at equal seconds: mean of the last three steps that ended when the fastest run was done.",
        *(server if args.server else []),
    ]


def _plot(axes: Any, runs: dict[str, list[Run]]) -> None:
    for (name, each), color in zip(runs.items(), ("C0", "C1", "C2"), strict=False):
        for index, run in enumerate(each):
            axes.plot(run.seconds, run.rewards, color=color, alpha=0.7, label=None if index else name)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("mean reward of the step")
    axes.legend()
