"""Every way to divide the devices between servers and trainers, what each costs, and the fastest that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from grpo_gym.planning import costs, memory
from grpo_gym.planning.hardware import GIB, Rates
from grpo_gym.planning.workload import Workload

_TENSOR_PARALLEL = (1, 2, 4, 8)
_REDUCE_LATENCY = 15e-6
"""Seconds an all-reduce takes however small it is; assumed."""
_MIN_ROWS = 8
"""A server with room for fewer completions than this is not worth starting."""


@dataclass(frozen=True, slots=True)
class Split:
    """One way to use the devices.

    Attributes:
        name: "servers", "colocate" (a server on the trainer's device) or "in process".
        server_gpus: devices of servers (0 in process).
        trainer_gpus: devices of trainers; colocated ones count in both.
        sharding: "none", "zero2" or "zero3".
        tensor_parallel: devices that hold one copy of the served model.
        rows: completions that run together on one copy.
        trainer_bytes: peak on a trainer device, runtime included.
        server_bytes: peak on a server device, runtime included.
        seconds: of a step: "rollout", "train", "optimizer", "communication", "sync", "overhead".
        overlapped: rollouts hide behind training or the other way round.
        problems: why it does not work; empty when it does.
    """

    name: str
    server_gpus: int
    trainer_gpus: int
    sharding: str
    tensor_parallel: int
    rows: float
    trainer_bytes: float
    server_bytes: float
    seconds: dict[str, float]
    overlapped: bool
    problems: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.problems

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimizer step."""
        s = self.seconds
        training = s["train"] + s["optimizer"] + s["communication"]
        work = max(s["rollout"], training) if self.overlapped else s["rollout"] + training
        return work + s["sync"] + s["overhead"]


def all_splits(load: Workload, rates: Rates, num_devices: int, on_cpu: bool = False) -> list[Split]:
    """Every split, those that fit first, the fastest first."""
    splits = list(_in_process(load, rates) if on_cpu else _gpu_splits(load, rates, num_devices))
    return sorted(splits, key=lambda split: (not split.fits, split.step_seconds))


def _gpu_splits(load: Workload, rates: Rates, num_gpus: int) -> Iterator[Split]:
    for servers in range(1, num_gpus):
        for tensor_parallel in _TENSOR_PARALLEL:
            if servers % tensor_parallel == 0:
                yield _separate(load, rates, servers, num_gpus - servers, tensor_parallel)
    if num_gpus == 1:
        yield _colocated(load, rates)


def _separate(load: Workload, rates: Rates, servers: int, trainers: int, tensor_parallel: int) -> Split:
    sharding, trainer_bytes, problems = _choose_sharding(load, rates, trainers)
    rows, server_bytes, server_problems = _server_room(
        load, rates, servers // tensor_parallel, tensor_parallel
    )
    if load.completions % trainers:
        problems.append(f"{load.completions} completions do not divide over {trainers} trainers")
    seconds = _training_seconds(load, rates, trainers, sharding)
    seconds["rollout"] = _rollout_seconds(load, rates, servers // tensor_parallel, tensor_parallel, rows)
    seconds["sync"] = costs.sync_seconds(load, rates)
    return Split(
        "servers", servers, trainers, sharding, tensor_parallel, rows, trainer_bytes, server_bytes, seconds,
        load.overlapped, problems + server_problems,
    )  # fmt: skip


def _colocated(load: Workload, rates: Rates) -> Split:
    """One device for both, in turn: the server takes what the trainer leaves."""
    trainer = memory.trainer_memory(load, "none", 1).total + rates.reserved_bytes
    left = rates.memory_bytes - trainer
    weights = memory.server_memory(load, 0, 1).total + rates.reserved_bytes
    room = (left - weights) / memory.row_cache_bytes(load, 1)
    rows = max(0.0, min(load.completions, room))
    problems = []
    if room < _MIN_ROWS:
        needed = trainer + weights + _MIN_ROWS * memory.row_cache_bytes(load, 1)
        problems.append(
            f"trainer and server need {needed / GIB:.1f} GiB, {rates.memory_bytes / GIB:.1f} are usable"
        )
    seconds = _training_seconds(load, rates, 1, "none")
    seconds["rollout"] = _rollout_seconds(load, rates, 1, 1, max(rows, 1.0))
    seconds["sync"] = costs.sync_seconds(load, rates)
    server = weights + rows * memory.row_cache_bytes(load, 1)
    return Split("colocate", 1, 1, "none", 1, rows, trainer, server, seconds, False, problems)


def _in_process(load: Workload, rates: Rates) -> Iterator[Split]:
    """Training and sampling in one process, as on a CPU without a server."""
    training = memory.trainer_memory(load, "none", 1).total
    sampling = memory.persistent_bytes(load, "none", 1) + memory.generation_memory(load).total
    peak = rates.reserved_bytes + max(training, sampling)
    problems = _over(peak, rates, "the process")
    seconds = _training_seconds(load, rates, 1, "none")
    seconds["rollout"] = _rollout_seconds(load, rates, 1, 1, load.completions)
    seconds["sync"] = 0.0
    yield Split("in process", 0, 1, "none", 1, load.completions, peak, 0.0, seconds, False, problems)


def _choose_sharding(load: Workload, rates: Rates, trainers: int) -> tuple[str, float, list[str]]:
    """The least sharding that fits; with the problem when none does."""
    for sharding in memory.SHARDINGS if trainers > 1 else ("none",):
        needed = memory.trainer_memory(load, sharding, trainers).total + rates.reserved_bytes
        if needed <= rates.memory_bytes:
            return sharding, needed, []
    return sharding, needed, _over(needed, rates, f"a trainer ({sharding} over {trainers})")


def _over(needed: float, rates: Rates, who: str) -> list[str]:
    if needed <= rates.memory_bytes:
        return []
    return [f"{who} needs {needed / GIB:.1f} GiB, {rates.memory_bytes / GIB:.1f} are usable"]


def _server_room(
    load: Workload, rates: Rates, copies: int, tensor_parallel: int
) -> tuple[float, float, list[str]]:
    """Completions that run together on one copy, bytes per device, and what prevents it."""
    problems = []
    if (
        tensor_parallel > 1
        and load.shape.num_kv_heads % tensor_parallel
        and tensor_parallel % load.shape.num_kv_heads
    ):
        problems.append(f"{load.shape.num_kv_heads} KV heads do not divide over {tensor_parallel} GPUs")
    fixed = memory.server_memory(load, 0, tensor_parallel).total + rates.reserved_bytes
    room = (rates.memory_bytes - fixed) / memory.row_cache_bytes(load, tensor_parallel)
    rows = min(load.completions / copies, room)
    if room < _MIN_ROWS:
        needed = fixed + _MIN_ROWS * memory.row_cache_bytes(load, tensor_parallel)
        problems += _over(needed, rates, f"a server (tensor parallel {tensor_parallel})")
    rows = max(rows, 1.0)
    return rows, fixed + rows * memory.row_cache_bytes(load, tensor_parallel), problems


def _rollout_seconds(load: Workload, rates: Rates, copies: int, tensor_parallel: int, rows: float) -> float:
    """Prompts, then waves of completions."""
    waves = max(1.0, load.completions / copies / rows)
    decode = costs.decode_work(load, rows, tensor_parallel).seconds(rates.decode) * waves
    prefill = costs.prefill_work(load, load.num_prompts / copies, tensor_parallel).seconds(rates.train)
    return (
        decode + prefill + waves * _reduce_seconds(load, rates, rows, tensor_parallel)
    ) / load.num_iterations


def _reduce_seconds(load: Workload, rates: Rates, rows: float, tensor_parallel: int) -> float:
    """Two all-reduces of the residual stream per layer and token, where a copy is spread over devices."""
    if tensor_parallel == 1:
        return 0.0
    shape = load.shape
    ring = 2 * (tensor_parallel - 1) / tensor_parallel
    numbers = 2 * shape.num_layers * shape.hidden_size * rows * load.completion_tokens
    latency = 2 * shape.num_layers * load.longest_completion * _REDUCE_LATENCY
    return latency + ring * numbers * load.serve_width / rates.link_bytes


def _training_seconds(load: Workload, rates: Rates, trainers: int, sharding: str) -> dict[str, float]:
    shards = trainers if sharding != "none" else 1
    return {
        "train": costs.train_work(load, 1 / trainers).seconds(rates.train),
        "optimizer": costs.optimizer_seconds(load, rates, shards),
        "communication": costs.communication_seconds(load, rates, trainers, sharding == "zero3"),
        "overhead": rates.step_seconds + load.completions * rates.completion_seconds / load.num_iterations,
    }
