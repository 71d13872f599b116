"""What a job asks SLURM for, and how its nodes and GPUs are split between trainers and servers."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LEAD_SECONDS = 600
_WORD = re.compile(r"[\w.,:@+=-]+")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Resources:
    """What is asked of SLURM.

    Attributes:
        time: SLURM's formats, such as 04:00:00 or 2-12:00:00.
        gpus: GPUs of each node; 0 for a job on CPUs.
        cpus: CPU cores of each node.
        memory: main memory of each node, such as 320G.
        server_gpus: GPUs of all nodes that serve; None for half of them.
        lead: seconds before the time limit at which the trainer is told to save; None: 600, at most a quarter.
    """

    account: str
    partition: str = "GPUQ"
    time: str = "04:00:00"
    nodes: int = 1
    gpus: int = 4
    gpu_type: str = "a100"
    cpus: int = 16
    memory: str = "320G"
    server_gpus: int | None = None
    lead: int | None = None

    def __post_init__(self) -> None:
        for name in ("account", "partition", "gpu_type", "memory"):
            value = getattr(self, name)
            if not _WORD.fullmatch(value or ("" if name in ("account", "memory") else "-")):
                raise ValueError(f"{name}={value!r}: letters, digits and .,:@+=- only.")
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: use at least {least}.")
        if not 0 < self.lead_seconds < self.seconds:
            raise ValueError(
                f"the checkpoint lead of {self.lead_seconds} s does not fit into time={self.time} "
                f"({self.seconds} s); use a smaller one."
            )

    @property
    def seconds(self) -> int:
        """The time limit in seconds."""
        return parse_time(self.time)

    @property
    def lead_seconds(self) -> int:
        """`lead` with its default."""
        return min(MAX_LEAD_SECONDS, self.seconds // 4) if self.lead is None else self.lead

    @property
    def gres(self) -> str:
        """The value of --gres; empty without GPUs."""
        parts = ["gpu", *([self.gpu_type] if self.gpu_type else []), str(self.gpus)]
        return ":".join(parts) if self.gpus else ""


@dataclass(frozen=True)
class Layout:
    """Who runs where: trainers on the first nodes (or GPUs), servers on the last.

    Attributes:
        server_nodes: nodes with a server; 0 when rollouts are made by the trainers, 1 also when server and trainers
            share a single node.
        trainer_gpus: GPUs of the trainers on each of their nodes.
        server_gpus: GPUs of the server on each of its nodes.
    """

    trainer_nodes: int
    server_nodes: int
    trainer_gpus: int
    server_gpus: int


def parse_time(text: str) -> int:
    """Seconds of a SLURM time limit: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s.

    Raises:
        ValueError: it is none of them.
    """
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"time={text!r}: write hours:minutes:seconds, such as 04:00:00, or days-hours.")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) < 3:
        hours, minutes, seconds = 0, *(*numbers, 0)[:2]
    else:
        hours, minutes, seconds = numbers
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def plan_layout(resources: Resources, needs_server: bool, tensor_parallel_size: int = 1) -> Layout:
    """Split nodes and GPUs between trainers and servers.

    Raises:
        ValueError: they cannot be split like that; the message says what to ask for.
    """
    nodes, gpus, wanted = resources.nodes, resources.gpus, resources.server_gpus
    if not needs_server:
        if wanted:
            raise ValueError(
                f"server_gpus={wanted}, but this experiment has no server; set use_vllm=true and "
                "vllm_mode=server, or leave it out."
            )
        return Layout(nodes, 0, gpus, 0)
    layout = _split_nodes(nodes, gpus, wanted) if nodes > 1 else _split_gpus(gpus, wanted)
    if gpus and layout.server_gpus % tensor_parallel_size:
        raise ValueError(
            f"{layout.server_gpus} GPU(s) of a server cannot be divided into replicas of "
            f"launch.server_tensor_parallel_size={tensor_parallel_size}."
        )
    return layout


def _split_nodes(nodes: int, gpus: int, wanted: int | None) -> Layout:
    if not gpus:
        return Layout(nodes - 1, 1, 0, 0)
    wanted = nodes // 2 * gpus if wanted is None else wanted
    if wanted % gpus or not 0 < wanted < nodes * gpus:
        raise ValueError(
            f"server_gpus={wanted}: of several nodes servers take whole ones; use a multiple of {gpus} "
            f"from {gpus} to {(nodes - 1) * gpus}."
        )
    return Layout(nodes - wanted // gpus, wanted // gpus, gpus, gpus)


def _split_gpus(gpus: int, wanted: int | None) -> Layout:
    if not gpus:
        return Layout(1, 1, 0, 0)
    if gpus == 1:
        raise ValueError("one GPU cannot be split; use vllm_mode=colocate, or gpus=2.")
    wanted = gpus // 2 if wanted is None else wanted
    if not 0 < wanted < gpus:
        raise ValueError(f"server_gpus={wanted}: use 1 to {gpus - 1}; the other GPUs train.")
    return Layout(1, 1, gpus - wanted, wanted)


def count_processes(layout: Layout, planned: int | None) -> int:
    """Trainer processes of all nodes: one per GPU; on CPUs `launch.num_processes`, or one per node.

    Raises:
        ValueError: the experiment was planned for another number.
    """
    if not layout.trainer_gpus:
        return planned or layout.trainer_nodes
    count = layout.trainer_nodes * layout.trainer_gpus
    if planned not in (None, count):
        raise ValueError(
            f"launch.num_processes is {planned}, but {count} GPU(s) train; change one of them, or leave it out."
        )
    return count
