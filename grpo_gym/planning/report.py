"""The plan in words: assumptions, every split in a table, the commands of the best one, what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_gym.planning import memory
from grpo_gym.planning.hardware import ASSUMPTIONS, GIB, Rates
from grpo_gym.planning.splits import Split
from grpo_gym.planning.workload import Workload

_MAX_ROWS = 12
_COLUMNS = (
    "servers",
    "trainers",
    "sharding",
    "server GiB",
    "trainer GiB",
    "rollout s",
    "train s",
    "sync s",
    "step s",
)


def describe_plan(
    load: Workload, rates: Rates, splits: Sequence[Split], device: str, num_devices: int
) -> str:
    """The whole text."""
    fitting = [split for split in splits if split.fits]
    parts = [_given(load, device, num_devices), _assumed(rates, device)]
    if fitting:
        parts += [_table(fitting[:_MAX_ROWS]), _best(load, rates, fitting[0])]
    parts.append(_misfits([split for split in splits if not split.fits], bool(fitting)))
    return "\n\n".join(part for part in parts if part)


def split_to_json(split: Split) -> dict[str, Any]:
    """One split for programs; sizes in bytes."""
    names = ("name", "server_gpus", "trainer_gpus", "sharding", "tensor_parallel", "rows", "trainer_bytes")
    values = {name: getattr(split, name) for name in (*names, "server_bytes", "overlapped", "problems")}
    return values | {"seconds": split.seconds, "step_seconds": split.step_seconds}


def _given(load: Workload, device: str, num_devices: int) -> str:
    count = load.shape.num_parameters
    size = f"{count / 1e9:.3f}B" if count >= 1e8 else f"{count / 1e6:.1f}M"
    trained = f", LoRA with {load.adapter_parameters / 1e6:.1f}M trained" if load.adapter_parameters else ""
    return (
        f"model       {size} parameters{trained}\n"
        f"step        {load.completions} completions ({load.num_prompts} prompts x {load.group_size}); "
        f"prompts of {load.prompt_tokens:.0f} tokens, completions of {load.completion_tokens:.0f}, "
        f"at most {load.max_completion_length}\n"
        f"devices     {num_devices} x {device}"
    )


def _assumed(rates: Rates, device: str) -> str:
    if rates.is_measured:
        return "rates       measured on this machine"
    shares = ", ".join(f"{share:.0%} of the {name}" for name, share in ASSUMPTIONS.items())
    return f"rates       assumed for {device}: {shares} of its data sheet"


def _table(splits: Sequence[Split]) -> str:
    rows = [_COLUMNS, *(_row(split) for split in splits)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def _row(split: Split) -> tuple[str, ...]:
    s = split.seconds
    servers = f"{split.server_gpus}" + (f" (tp {split.tensor_parallel})" if split.tensor_parallel > 1 else "")
    if split.name == "colocate":
        servers = "same GPU"
    training = s["train"] + s["optimizer"] + s["communication"]
    return (
        servers, str(split.trainer_gpus), split.sharding, f"{split.server_bytes / GIB:.1f}",
        f"{split.trainer_bytes / GIB:.1f}", f"{s['rollout']:.1f}", f"{training:.1f}", f"{s['sync']:.1f}",
        f"{split.step_seconds:.1f}",
    )  # fmt: skip


def _best(load: Workload, rates: Rates, split: Split) -> str:
    lines = [f"best        {split.step_seconds:.1f} s per step; {_overlap(split)}"]
    if split.name != "in process":
        parts = memory.server_memory(load, split.rows, split.tensor_parallel)
        lines.append(f"server      {parts.describe()} GiB; {split.rows:.0f} completions at once")
    parts = memory.trainer_memory(load, split.sharding, split.trainer_gpus)
    lines.append(f"trainer     {parts.describe()} GiB, and {rates.reserved_bytes / GIB:.1f} for the runtime")
    if split.name == "servers":
        lines += _commands(load, split)
    return "\n".join(lines)


def _overlap(split: Split) -> str:
    return "rollouts and training overlap" if split.overlapped else "rollouts, then training"


def _commands(load: Workload, split: Split) -> list[str]:
    copies = split.server_gpus // split.tensor_parallel
    serve = f"vf-vllm --model MODEL --data-parallel-size {copies}"
    if split.tensor_parallel > 1:
        serve += f" --tensor-parallel-size {split.tensor_parallel}"
    configs = {"none": "multi_gpu", "zero2": "deepspeed_zero2", "zero3": "deepspeed_zero3"}
    launcher = "single_gpu" if split.trainer_gpus == 1 else configs[split.sharding]
    return [
        f"serve       CUDA_VISIBLE_DEVICES={_devices(0, split.server_gpus)} {serve}",
        f"train       CUDA_VISIBLE_DEVICES={_devices(split.server_gpus, split.trainer_gpus)} accelerate launch "
        f"--config-file configs/accelerate/{launcher}.yaml --num-processes {split.trainer_gpus} -m grpo_gym.cli train "
        f"CONFIG per_device_train_batch_size={load.completions // split.trainer_gpus} use_vllm=true vllm_mode=server",
    ]


def _devices(first: int, count: int) -> str:
    return ",".join(str(index) for index in range(first, first + count))


def _misfits(splits: Sequence[Split], some_fit: bool) -> str:
    if not splits:
        return ""
    title = "does not fit:" if some_fit else "NOTHING FITS:"
    lines = [f"  {_short(split)}: {'; '.join(split.problems)}" for split in splits[:_MAX_ROWS]]
    hidden = len(splits) - len(lines)
    if hidden:
        lines.append(f"  and {hidden} more")
    return "\n".join([title, *lines])


def _short(split: Split) -> str:
    if split.name == "in process":
        return "one process"
    if split.name == "colocate":
        return "server and trainer on one GPU"
    suffix = f" (tensor parallel {split.tensor_parallel})" if split.tensor_parallel > 1 else ""
    return f"{split.server_gpus} for servers{suffix}, {split.trainer_gpus} for trainers"
