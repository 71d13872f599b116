"""How much of the shorter of rollout and training hides behind the longer one, with a real vf-vllm.

python -m benchmarks overlap                     # the embedded model, server and trainer on a core each

A round is a run with `max_staleness=0` (rollouts, then training) and one with `max_staleness=1` (rollouts of the
next step while this one trains), same model, prompts and settings.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import verifiers as vf
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.end_to_end import MAX_MODEL_LEN, env_reward, questions
from benchmarks.harness import Result, Spread, say
from benchmarks.real_server import model_folder, real_server, split_cores, this_process_on

BAR = 0.85


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one optimizer step.

    Attributes:
        wall: from the end of the step before to the end of this one.
        rollout: how long the trainer waited for rollouts.
        sync: pausing the server, sending weights, and the canary.
    """

    wall: float
    rollout: float
    sync: float

    @property
    def train(self) -> float:
        """Everything else: loss, backward, optimizer, logging."""
        return self.wall - self.rollout - self.sync


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """Collects a `Step` for every optimizer step after the first `warmup` ones."""

    def __init__(self, warmup: int) -> None:
        self.steps: list[Step] = []
        self._warmup = warmup
        self._last = 0.0
        self._wall = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The step is done, optimizer included."""
        now = time.perf_counter()
        self._wall, self._last = now - self._last, now

    def on_log(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        """Take the step's times; logs come right after `on_step_end`."""
        logs: dict[str, float] = kwargs["logs"]
        if "time/rollout" in logs and state.global_step > self._warmup:
            self.steps.append(Step(self._wall, logs["time/rollout"], logs["time/sync"]))


@dataclass(frozen=True, slots=True)
class Phases:
    """Median seconds per step of one run."""

    wall: float
    rollout: float
    train: float
    sync: float

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Phases:
        """The medians of at least one step."""
        fields = ("wall", "rollout", "train", "sync")
        return cls(*(statistics.median(getattr(step, name) for step in steps) for name in fields))


@dataclass(frozen=True, slots=True)
class Round:
    """The two runs of a round: without and with overlap."""

    apart: Phases
    overlapped: Phases

    @property
    def efficiency(self) -> float:
        """Longer phase of the run without overlap over the wall time of the overlapped one."""
        return max(self.apart.rollout, self.apart.train) / self.overlapped.wall

    @property
    def sum_over_wall(self) -> float:
        """(rollout + train) without overlap over the wall time with it: 2 when both are equal and all hides."""
        return (self.apart.rollout + self.apart.train) / self.overlapped.wall


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `overlap`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks overlap")
    parser.add_argument("--model", default="tiny", help="tiny, smollm2-135m (random weights), or a directory")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved pairs of runs")
    parser.add_argument("--steps", type=int, default=6, help="timed steps per run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--completions", type=int, default=512, help="per optimizer step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-completion-length", type=int, default=64)
    parser.add_argument("--server-flags", default="", help="more flags of vf-vllm, separated by spaces")
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Alternate runs with and without overlap on one server; results are written after every round."""
    args = parse_args(argv)
    server_cores, trainer_cores = split_cores()
    rounds: list[Round] = []
    with (
        model_folder(args.model) as path,
        real_server(path, MAX_MODEL_LEN, server_cores, args.server_flags.split()) as server,
        this_process_on(trainer_cores),
    ):
        for seed in range(args.rounds):
            phases = {}
            for staleness in (0, 1) if seed % 2 == 0 else (1, 0):
                phases[staleness] = Phases.of(run(args, path, server.base_url, staleness, seed))
                gc.collect()
            rounds.append(Round(phases[0], phases[1]))
            say(f"round {seed}: efficiency {rounds[-1].efficiency:.3f}, {rounds[-1]}")
            summarize(Result("overlap", ["overlap", *argv], notes=_notes(args, server_cores)), rounds, args)


def run(args: argparse.Namespace, path: str, url: str, staleness: int, seed: int) -> list[Step]:
    """Train for `warmup + steps` steps against the server; the timed steps."""
    from grpo_gym import GRPOConfig, GRPOTrainer

    times = StepTimes(args.warmup)
    env = vf.SingleTurnEnv(dataset=questions(seed), rubric=vf.Rubric([env_reward]))
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, seed=seed, max_steps=args.warmup + args.steps,
            per_device_train_batch_size=args.completions, num_generations=args.group_size,
            max_completion_length=args.max_completion_length, learning_rate=1e-5, bf16=False, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, eval_on_start=False, log_completions=False,
            use_vllm=True, vllm_server_base_url=url, max_staleness=staleness,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(path)
        GRPOTrainer(model, env, config, processing_class=tokenizer, callbacks=[times]).train()
    return times.steps


def summarize(result: Result, rounds: Sequence[Round], args: argparse.Namespace) -> None:
    """Figures, rows and files of the rounds so far."""
    result.figures = Spread.of([r.efficiency for r in rounds]).figures("overlap_efficiency")
    result.figures |= Spread.of([r.sum_over_wall for r in rounds]).figures("rollout_plus_train_over_wall")
    speedups = [r.apart.wall / r.overlapped.wall for r in rounds]
    result.figures |= Spread.of(speedups).figures("speedup_by_overlap")
    for name, label in (("apart", "max_staleness 0"), ("overlapped", "max_staleness 1")):
        row: dict[str, Any] = {"run": label}
        for phase in ("wall", "rollout", "train", "sync"):
            spread = Spread.of([getattr(getattr(r, name), phase) for r in rounds])
            result.figures |= spread.figures(f"seconds_{phase}_{name}")
            row[f"{phase} s"] = str(spread)
        result.rows.append(row)
    result.rows.append({**dict.fromkeys(result.rows[0], ""), "run": f"efficiency, bar {BAR}"})
    result.rows[-1]["wall s"] = str(Spread.of([r.efficiency for r in rounds]))
    result.details = {"rounds": [asdict(r) for r in rounds]}
    result.write(lambda axes: _plot(axes, rounds), args.folder)


def _notes(args: argparse.Namespace, server_cores: set[int] | None) -> list[str]:
    where = "half of the cores each" if server_cores else "the same core"
    return [
        f"{args.model}, float32; {args.completions} completions per step in groups of {args.group_size}, at most "
        f"{args.max_completion_length} tokens; vf-vllm and trainer on {where}; medians of {args.steps} steps per "
        f"run after {args.warmup} of warm-up, {args.rounds} interleaved pairs of runs.",
        "Efficiency: max(rollout, train) of the run with max_staleness 0 over wall of the run with max_staleness 1 "
        "of the same round. In the overlapped run `rollout` is only the time the trainer still waited.",
        "train is everything but waiting and sync: loss, backward, optimizer, packing, metrics. sync pauses the "
        "server, so it cannot hide; it is in the wall time.",
    ]


def _plot(axes: Any, rounds: Sequence[Round]) -> None:
    for position, name in enumerate(("apart", "overlapped")):
        bottom = 0.0
        for phase, color in (("rollout", "C0"), ("train", "C1"), ("sync", "C2")):
            height = statistics.median(getattr(getattr(r, name), phase) for r in rounds)
            axes.bar(position, height, bottom=bottom, color=color, label=None if position else phase)
            bottom += height
    axes.set_xticks([0, 1], ["max_staleness 0", "max_staleness 1"])
    axes.set_ylabel("seconds per step")
    axes.legend()
