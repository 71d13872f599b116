"""Rates of this machine's CPU, fitted to short real runs.

The seconds of a phase are a sum of four amounts of work, each over its rate (`costs.Work`). Runs of several
shapes and sizes give as many equations; the rates solve them with the least squared relative error, none
negative. What is predicted with them later are runs of other shapes and sizes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil

from grpo_gym.planning import costs, memory
from grpo_gym.planning.hardware import PhaseRates, Rates
from grpo_gym.planning.measured_run import Measured, RunSetting, measure
from grpo_gym.planning.workload import Workload

# hidden, MLP, layers, heads, KV heads, vocabulary; completions, group, words of the prompt, completion tokens
SETTINGS: tuple[RunSetting, ...] = (
    RunSetting(128, 384, 4, 4, 2, 1024, 32, 8, 20, 24),
    RunSetting(128, 384, 12, 4, 2, 2048, 64, 8, 20, 32),
    RunSetting(256, 768, 6, 4, 4, 8192, 32, 8, 60, 32),
    RunSetting(256, 768, 4, 4, 2, 16384, 64, 16, 20, 24),
    RunSetting(512, 1536, 4, 8, 4, 2048, 32, 8, 60, 24),
    RunSetting(512, 1408, 8, 8, 2, 4096, 16, 4, 30, 48),
    RunSetting(128, 384, 4, 4, 2, 2048, 128, 16, 100, 48),
    RunSetting(768, 2048, 4, 12, 4, 8192, 16, 8, 40, 24),
    # Vocabularies of real models are larger than that: what is fitted has to reach there.
    RunSetting(256, 768, 4, 4, 2, 49152, 16, 8, 30, 24),
)


Run = tuple[RunSetting, Measured]


def measure_runs(
    threads: int = 1,
    settings: Sequence[RunSetting] = SETTINGS,
    progress: Callable[[str], None] = print,
) -> list[Run]:
    """Make the runs that `fit` needs.

    Args:
        threads: torch threads of the runs.
        settings: what is run.
        progress: told about every run.
    """
    runs = []
    for setting in settings:
        placed = replace(setting, threads=threads)
        measured = measure(placed)
        progress(f"{placed}: {measured.step_seconds:.2f} s/step, {measured.peak_bytes / 2**20:.0f} MiB")
        runs.append((placed, measured))
    return runs


def fit(runs: Sequence[Run]) -> Rates:
    """The rates that explain the runs best."""
    loads = [setting.workload(measured.prompt_tokens) for setting, measured in runs]
    train = _fit_phase([costs.train_work(load) for load in loads], [run.train_seconds for _, run in runs])
    prefill = [costs.prefill_work(load, load.num_prompts).seconds(train) for load in loads]
    rollout = [run.rollout_seconds - seconds for (_, run), seconds in zip(runs, prefill, strict=True)]
    decode, completion = _fit_decode(loads, rollout)
    optimizer, step = _fit_rest(loads, [run.rest_seconds for _, run in runs])
    return Rates(
        memory_bytes=float(psutil.virtual_memory().total),
        reserved_bytes=_reserved(loads, [run for _, run in runs]),
        decode=decode,
        train=train,
        optimizer_parameters=optimizer,
        link_bytes=math.inf,
        completion_seconds=completion,
        step_seconds=step,
        is_measured=True,
    )


def save(rates: Rates, path: str | Path, threads: int, runs: Sequence[Run] = ()) -> None:
    """Write the rates, and the runs they come from."""
    record = {
        "threads": threads,
        "rates": rates.to_json(),
        "runs": [{"setting": asdict(setting), "measured": asdict(measured)} for setting, measured in runs],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(record, indent=2) + "\n")


def nonnegative_least_squares(rows: np.ndarray, rounds: int = 20000) -> np.ndarray:
    """Coefficients x >= 0 with the least |rows x - 1|^2, by cyclic coordinate descent.

    Args:
        rows: [measurements, coefficients] float64; each row is divided by its measurement.
    """
    x = np.zeros(rows.shape[1])
    norms = (rows**2).sum(0)
    residual = np.ones(len(rows))
    for _ in range(rounds):
        for k in np.flatnonzero(norms):
            change = max(-x[k], rows[:, k] @ residual / norms[k])
            x[k] += change
            residual -= change * rows[:, k]
    return x


def _fit_phase(works: Sequence[costs.Work], seconds: Sequence[float]) -> PhaseRates:
    return _phase_rates(_coefficients([_amounts(work) for work in works], seconds))


def _fit_decode(loads: Sequence[Workload], seconds: Sequence[float]) -> tuple[PhaseRates, float]:
    """Rates of sampling, and seconds per completion for everything around it."""
    rows = [[*_amounts(costs.decode_work(load, load.completions)), load.completions] for load in loads]
    x = _coefficients(rows, seconds)
    return _phase_rates(x[:4]), float(x[4])


def _fit_rest(loads: Sequence[Workload], seconds: Sequence[float]) -> tuple[float, float]:
    """Parameters per second of the optimizer, and seconds per step of the bookkeeping."""
    x = _coefficients([[float(load.trained_parameters), 1.0] for load in loads], seconds)
    return _rate(x[0]), float(x[1])


def _reserved(loads: Sequence[Workload], runs: Sequence[Measured]) -> float:
    """What a process takes beside what the simulator counts."""
    extra = []
    for load, run in zip(loads, runs, strict=True):
        training = memory.trainer_memory(load, "none", 1).total
        sampling = memory.persistent_bytes(load, "none", 1) + memory.generation_memory(load).total
        extra.append(run.peak_bytes - max(training, sampling))
    return max(0.0, statistics.median(extra))


def _amounts(work: costs.Work) -> list[float]:
    return [work.launches, work.flops, work.bytes, work.elements]


def _coefficients(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> np.ndarray:
    measured = np.maximum(np.array(seconds, dtype=np.float64), 1e-6)
    return nonnegative_least_squares(np.array(rows, dtype=np.float64) / measured[:, None])


def _phase_rates(x: np.ndarray) -> PhaseRates:
    return PhaseRates(float(x[0]), _rate(x[1]), _rate(x[2]), _rate(x[3]), overlaps=False)


def _rate(seconds_each: float) -> float:
    return 1.0 / float(seconds_each) if seconds_each > 0 else math.inf
