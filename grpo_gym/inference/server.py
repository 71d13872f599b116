"""`vf-vllm`: vLLM's OpenAI-compatible server, made ready for a trainer.

    vf-vllm --model Qwen/Qwen2.5-1.5B-Instruct --port 8000 --data-parallel-size 2 --enforce-eager

Every flag of `vllm serve` works; the model may be given by position or by `--model`. What differs:
- the server listens on 127.0.0.1 unless `--host` says otherwise; see `weight_transfer_guard` for who may do what;
- weights can be updated while it runs (`weight_transfer`; NCCL on CUDA, gloo on CPU);
- log-probabilities are those of the distribution that was sampled from (`--logprobs-mode processed_logprobs`);
- on CPU: float32 (faster than bfloat16 without AVX512, and exact), one API process, a KV cache of a few
  GiB instead of nearly all memory, and no pinning of threads on small machines.
`vllm serve` itself does not start with the CPU build of vLLM (it looks for a package named "vllm").
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from grpo_gym.inference.weight_transfer_guard import TOKEN_VARIABLE, GuardSettings
from grpo_gym.inference.weight_transfer_shared import machine_identity

PARENT_VARIABLE = "VF_VLLM_PARENT_PID"
_EXTENSION = "grpo_gym.inference.weight_transfer.WorkerExtension"
_ADAPTER_ENDPOINT = "grpo_gym.inference.adapter_endpoint.AdapterEndpoint"
_MIDDLEWARE = "grpo_gym.inference.weight_transfer_guard.WeightSyncGuard"
_LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OWN_BACKENDS = ("gloo", "vf_nccl")
_GIB = 2**30
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Large pages where the kernel has them on request. A reload packs every layer into fresh memory, and the kernel hands
that out a page at a time."""
_SMALL_MACHINE_CPUS = 8
_PARENT_POLL_S = 2.0


def main(argv: Sequence[str] | None = None) -> None:
    """Start the server; returns when it has stopped."""
    os.environ.setdefault("VLLM_SERVER_DEV_MODE", "1")  # opens the weight endpoints; before vLLM is imported
    _stop_with_parent()
    parser = make_parser()
    args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        state = prepare(args, parser)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"vf-vllm: {error}")
    try:
        serve(args)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `vllm serve`, with a trainer's defaults and `--weight-sync-token`."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vf-vllm", description="vLLM's server, made ready for a trainer.")
    parser.add_argument(
        "--weight-sync-token",
        help=f"Token a trainer must send; default: the variable {TOKEN_VARIABLE}, or one made up and printed "
        "when the server is bound to more than this machine.",
    )
    make_arg_parser(parser)
    parser.set_defaults(
        model=None,
        host="127.0.0.1",
        logprobs_mode="processed_logprobs",
        disable_uvicorn_access_log=True,
        log_error_stack=False,
    )
    if is_cpu_platform():
        parser.set_defaults(dtype="float32", api_server_count=1)
    return parser


def is_cpu_platform() -> bool:
    """Whether this build of vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def prepare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Path:
    """Turn parsed flags into those vLLM needs, and set the environment of its processes.

    Returns:
        A temporary folder that must live as long as the server.

    Raises:
        ValueError: something a user has to change, in one line.
        FileNotFoundError: a model this package knows by name was not unpacked yet.
    """
    use_model(args)
    check_port(args)
    if is_cpu_platform():
        for name, value in cpu_environment(args, parser.get_default("gpu_memory_utilization")).items():
            os.environ.setdefault(name, value)
    return use_weight_transfer(args)


def use_model(args: argparse.Namespace) -> None:
    """Accept the model by position or name, and the names this package knows ("tiny").

    The server answers to the name that was typed as well as to the path it stands for.

    Raises:
        ValueError: no model was named.
    """
    from grpo_gym.models import resolve_model

    name = args.model_tag or args.model
    if not name:
        raise ValueError("which model? Give one: vf-vllm --model NAME_OR_PATH (tiny is the packaged one).")
    path = str(resolve_model(name))
    if args.served_model_name is None and path != name:
        args.served_model_name = [name, path]
    args.model = args.model_tag = path


def check_port(args: argparse.Namespace) -> None:
    """Find out now, not after the model has loaded, that the port is taken.

    Raises:
        ValueError: the address cannot be bound.
    """
    if args.uds:
        return
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {args.host}:{args.port} ({error.strerror}): "
                "stop what runs there or choose another --port."
            ) from error


def is_loopback(args: argparse.Namespace) -> bool:
    """Whether only this machine will reach the server."""
    return bool(args.uds) or args.host in ("localhost", "::1") or args.host.startswith("127.")


def use_weight_transfer(args: argparse.Namespace) -> Path:
    """Switch on weight updates, unless the user chose their own engine, and the guard before them.

    Returns:
        The folder in which the guard keeps who holds the server.
    """
    from vllm.config.weight_transfer import WeightTransferConfig

    if args.weight_transfer_config is None:
        args.weight_transfer_config = WeightTransferConfig(backend="gloo" if is_cpu_platform() else "vf_nccl")
    backend = _backend_name(args.weight_transfer_config)
    if backend in OWN_BACKENDS and not args.worker_extension_cls:
        args.worker_extension_cls = _EXTENSION
    state = Path(tempfile.mkdtemp(prefix="vf-vllm-"))
    machine = machine_identity() if is_on_one_machine(args) else ""
    max_lora_rank = use_lora(args) if machine else 0
    settings = GuardSettings(
        find_token(args),
        is_loopback(args),
        backend,
        str(state / "trainer"),
        machine,
        max_lora_rank,
        list(args.lora_target_modules or []),
    )
    settings.to_environment()
    args.middleware = [*args.middleware, _ADAPTER_ENDPOINT, _MIDDLEWARE]
    del args.weight_sync_token  # vLLM logs the flags it was given
    return state


def use_lora(args: argparse.Namespace) -> int:
    """Make `--enable-lora` fit for a trainer; the largest rank that is served, 0 without the flag.

    The LM head is left out: on a CPU vLLM's LoRA head cannot score a prompt while other requests are in the batch,
    which is what the trainer asks for after every sync.
    """
    if not args.enable_lora:
        return 0
    args.lora_target_modules = args.lora_target_modules or list(_LORA_MODULES)
    args.api_server_count = 1  # the adapter that a trainer sends is known to one API process
    return int(args.max_lora_rank)


def is_on_one_machine(args: argparse.Namespace) -> bool:
    """Whether every worker of the server runs on this machine."""
    local = args.data_parallel_size_local
    uses_ray = "ray" in (args.data_parallel_backend, args.distributed_executor_backend)
    return (args.nnodes or 1) == 1 and local in (None, args.data_parallel_size) and not uses_ray


def _backend_name(config: Any) -> str:
    return str(config["backend"] if isinstance(config, dict) else config.backend)


def find_token(args: argparse.Namespace) -> str | None:
    """The token of the run: the flag, the environment, or a new one where others can reach the server."""
    token = args.weight_sync_token or os.environ.get(TOKEN_VARIABLE)
    if token or is_loopback(args):
        return token or None
    token = secrets.token_urlsafe(24)
    print(
        f"vf-vllm: other machines can reach {args.host}. Trainers need this server's token:\n"
        f"  export {TOKEN_VARIABLE}={token}",
        file=sys.stderr,
        flush=True,
    )
    return token


def cpu_environment(args: argparse.Namespace, default_utilization: float) -> dict[str, str]:
    """Variables that make vLLM a good neighbour on a CPU; the user's own come first.

    The KV cache takes an eighth of the free memory, between 1 and 8 GiB per replica, unless a flag sizes it. On
    small machines, or with several replicas, threads are not pinned: vLLM would put them on the same cores.
    """
    replicas = max(1, int(args.data_parallel_size or 1)) * max(1, int(args.tensor_parallel_size or 1))
    variables: dict[str, str] = {}
    if args.kv_cache_memory_bytes is None and args.gpu_memory_utilization == default_utilization:
        free_gib = psutil.virtual_memory().available // _GIB
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(min(8, max(1, free_gib // (8 * replicas))))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and (cpus <= _SMALL_MACHINE_CPUS or replicas > 1):
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        variables["OMP_NUM_THREADS"] = str(max(1, cpus // replicas))
    variables["GLIBC_TUNABLES"] = _HUGE_PAGES
    return variables


def serve(args: argparse.Namespace) -> None:
    """Run vLLM's server in this process until it is stopped."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)


def _stop_with_parent() -> None:
    """When a trainer started this server, stop when it is gone, even if it was killed."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="vf-vllm-parent", daemon=True).start()


if __name__ == "__main__":
    main()
