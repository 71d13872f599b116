"""What `accelerate launch` or `torchrun` asked for is what runs: otherwise one clear line, before weights load.

accelerate reads its wishes from environment variables and, on a machine without GPUs, quietly drops some of
them: several processes become several independent runs, FSDP becomes plain data parallelism, and ZeRO with
ACCELERATE_USE_CPU, too. Here the processes meet over gloo and the wish is kept, or refused.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

if TYPE_CHECKING:
    from grpo_gym.training.config import GRPOConfig

_TRUE = frozenset({"1", "true", "yes", "on"})


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").lower() in _TRUE


def num_launched() -> int:
    """Processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End a script whose settings are wrong like a wrong option: one line from rank 0, exit code 2, no traceback."""
    try:
        yield
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


def choose_device(args: GRPOConfig) -> None:
    """Compute on the CPU where there is nothing else; called before TrainingArguments look for a device."""
    if is_set("ACCELERATE_USE_CPU"):
        # accelerate would leave DeepSpeed and FSDP out because of this variable; use_cpu says the same.
        os.environ["ACCELERATE_USE_CPU"] = "false"
        args.use_cpu = True
    if num_launched() > 1 and not torch.accelerator.is_available():
        args.use_cpu = True


def check_launch(args: GRPOConfig) -> None:
    """Make sure that the processes know of each other; called after TrainingArguments set up the device.

    Raises:
        ValueError: the launcher started several processes, but they would train on their own.
    """
    if args.use_cpu and _wants_fsdp(args) and num_launched() > 1:
        # accelerate shards with FSDP where it believes in GPUs; FSDP itself does not mind.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        PartialState._shared_state["device"] = torch.device("cpu")  # FSDP1 takes "cpu:0" for another device
    if args.use_cpu and _wants_deepspeed(args):
        _without_compiled_collectives()
    launched = num_launched()
    if args.world_size != launched:
        raise ValueError(
            f"the launcher started {launched} processes but each would train alone (world size {args.world_size}): "
            "start with `accelerate launch --config-file configs/accelerate/... --num-processes N`, or torchrun."
        )


def check_sharding(args: GRPOConfig, uses_deepspeed: bool, uses_fsdp: bool) -> None:
    """Raise when the launcher's DeepSpeed or FSDP did not reach the trainer.

    Raises:
        ValueError: weights would not be divided as asked for.
    """
    wanted = {
        "DeepSpeed": _wants_deepspeed(args),
        "FSDP": _wants_fsdp(args),
    }
    found = {"DeepSpeed": uses_deepspeed, "FSDP": uses_fsdp and args.world_size > 1}
    for name, is_wanted in wanted.items():
        if is_wanted and args.world_size > 1 and not found[name]:
            raise ValueError(f"{name} was asked for but is not used: check the accelerate config file.")


def _wants_deepspeed(args: GRPOConfig) -> bool:
    return bool(args.deepspeed) or is_set("ACCELERATE_USE_DEEPSPEED")


def _without_compiled_collectives() -> None:
    """Keep DeepSpeed on the CPU from compiling C++ at the first start (minutes, and a compiler): gloo will do."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _wants_fsdp(args: GRPOConfig) -> bool:
    return bool(args.fsdp) or is_set("ACCELERATE_USE_FSDP")
