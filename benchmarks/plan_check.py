"""Is `grpo-gym plan` right? Rates are fitted to some real runs on this CPU, and other runs are predicted.

python -m benchmarks plan_check                      # some minutes, on one core
python -m benchmarks plan_check --rates rates.json   # with rates of `grpo-gym plan --calibrate rates.json`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Result, say
from grpo_gym.planning.calibration import SETTINGS, fit, measure_runs, save
from grpo_gym.planning.hardware import Rates, load_rates
from grpo_gym.planning.measured_run import Measured, RunSetting, measure
from grpo_gym.planning.splits import Split, all_splits

BAR = 0.25
# None of these is in `calibration.SETTINGS`: group size, completion length, prompt and shape differ.
CHECKS: dict[str, RunSetting] = {
    "tiny, group 4": RunSetting(192, 512, 4, 6, 6, 1024, 32, 4, 30, 48),
    "tiny, group 16": RunSetting(192, 512, 4, 6, 6, 1024, 64, 16, 30, 48),
    "tiny, long completions": RunSetting(192, 512, 4, 6, 6, 1024, 32, 8, 30, 128),
    "tiny, long prompts": RunSetting(192, 512, 4, 6, 6, 1024, 32, 8, 200, 32),
    "wide": RunSetting(640, 1792, 4, 10, 5, 4096, 24, 8, 40, 32),
    "deep": RunSetting(256, 704, 16, 4, 2, 4096, 32, 8, 40, 32),
    "large vocabulary": RunSetting(384, 1024, 6, 6, 3, 32768, 32, 8, 40, 32),
}


@dataclass(frozen=True, slots=True)
class Check:
    """A run, measured and predicted."""

    name: str
    measured: Measured
    predicted: Split

    @property
    def seconds_error(self) -> float:
        """Predicted over measured seconds per step, minus 1."""
        return self.predicted.step_seconds / self.measured.step_seconds - 1

    @property
    def memory_error(self) -> float:
        """Predicted over measured peak memory, minus 1."""
        return self.predicted.trainer_bytes / self.measured.peak_bytes - 1

    @property
    def added_memory_error(self) -> float:
        """The same for what the run added to a process that had everything imported."""
        base = self.measured.baseline_bytes
        return (self.predicted.trainer_bytes - base) / (self.measured.peak_bytes - base) - 1


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `plan_check`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan_check")
    parser.add_argument("--rates", type=Path, help="measured before; else they are measured first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Calibrate, predict, run, compare."""
    args = parse_args(argv)
    rates = load_rates(args.rates) if args.rates else _calibrate(args)
    checks = [check(name, setting, rates, args.threads) for name, setting in CHECKS.items()]
    result = Result("plan_check", ["plan_check", *argv], notes=_notes(args))
    for each in checks:
        result.rows.append(_row(each))
    result.figures = _figures(checks)
    result.details = {
        "rates": rates.to_json(),
        "runs": {each.name: asdict(each.measured) | {"predicted": each.predicted.seconds} for each in checks},
    }
    result.write(lambda axes: _plot(axes, checks), args.folder)


def _calibrate(args: argparse.Namespace) -> Rates:
    runs = measure_runs(args.threads, progress=say)
    rates = fit(runs)
    save(rates, (args.folder or RESULTS) / "plan_rates.json", args.threads, runs)
    return rates


def check(name: str, setting: RunSetting, rates: Rates, threads: int) -> Check:
    """Run a setting and predict it."""
    measured = measure(replace(setting, threads=threads))
    (predicted,) = all_splits(setting.workload(measured.prompt_tokens), rates, 1, on_cpu=True)
    done = Check(name, measured, predicted)
    say(
        f"{name}: {measured.step_seconds:.2f} s/step, predicted {predicted.step_seconds:.2f} "
        f"({done.seconds_error:+.0%}); memory {done.memory_error:+.0%}, added {done.added_memory_error:+.0%}"
    )
    return done


def _figures(checks: Sequence[Check]) -> dict[str, float]:
    return {
        "largest_seconds_error": max(abs(each.seconds_error) for each in checks),
        "largest_memory_error": max(abs(each.memory_error) for each in checks),
        "largest_added_memory_error": max(abs(each.added_memory_error) for each in checks),
        "bar": BAR,
    }


def _row(each: Check) -> dict[str, Any]:
    setting = CHECKS[each.name]
    return {
        "run": each.name,
        "parameters": f"{setting.shape.num_parameters / 1e6:.1f}M",
        "completions": f"{setting.completions} x {setting.completion_tokens}",
        "s/step": each.measured.step_seconds,
        "predicted s/step": each.predicted.step_seconds,
        "error": f"{each.seconds_error:+.0%}",
        "peak MiB": round(each.measured.peak_bytes / 2**20),
        "predicted MiB": round(each.predicted.trainer_bytes / 2**20),
        "memory error": f"{each.memory_error:+.0%}",
        "error of added memory": f"{each.added_memory_error:+.0%}",
    }


def _notes(args: argparse.Namespace) -> list[str]:
    return [
        f"Rates fitted to {len(SETTINGS)} runs of other shapes, group sizes and lengths; {args.threads} thread(s), "
        "float32.",
        "Every run is a process of its own: whole in-process steps of GRPOTrainer on a random Llama, medians "
        "of the steps after the first. Memory is the largest resident size.",
        "Added memory: without what the process held before the model was made.",
        f"The aim is an error within {BAR:.0%}.",
    ]


def _plot(axes: Any, checks: Sequence[Check]) -> None:
    measured = [each.measured.step_seconds for each in checks]
    axes.scatter(measured, [each.predicted.step_seconds for each in checks], label="runs")
    ends = [min(measured) / 1.5, max(measured) * 1.5]
    axes.plot(ends, ends, color="grey", label="equal")
    axes.fill_between(ends, [(1 - BAR) * x for x in ends], [(1 + BAR) * x for x in ends], alpha=0.15)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured seconds per step")
    axes.set_ylabel("predicted")
    axes.legend()
