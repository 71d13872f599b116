"""A real vf-vllm for benchmarks: the model it serves, and which CPU cores it and the trainer may use.

Server and trainer stand for two devices. On a CPU each gets cores and threads of its own: fighting for the same
core they would measure the operating system's scheduler.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.shapes import MODEL_NAMES, model_config
from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.models import TINY_MODEL_PATH, resolve_model

START_SECONDS = 300.0
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@contextlib.contextmanager
def model_folder(name: str, layers: int | None = None) -> Iterator[str]:
    """The path of a model: the embedded one ("tiny"), a directory, or a random-initialised shape written now.

    A random model almost never samples its end-of-sequence token: every completion has the longest length. It has
    the embedded model's tokenizer, so only its first ids mean something.
    """
    if name == "tiny" or name not in MODEL_NAMES:
        yield str(resolve_model(name))
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-model-") as folder:
        write_random_model(name, Path(folder), layers)
        yield folder


def write_random_model(name: str, folder: Path, layers: int | None = None) -> None:
    """Write a checkpoint of a known shape with seeded random weights, float32, and a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(name, layers), dtype=torch.float32)
    model.save_pretrained(folder)
    for file in _TOKENIZER_FILES:
        source = Path(TINY_MODEL_PATH) / file
        if source.is_file():
            shutil.copy(source, folder / file)
    generation = {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation))


@contextlib.contextmanager
def real_server(
    model: str, max_model_len: int, cores: set[int] | None = None, extra_args: Sequence[str] = ()
) -> Iterator[ColocatedServer]:
    """A vf-vllm of `model` on some cores (all when None); stopped at the end."""
    server = ColocatedServer(model, max_model_len=max_model_len, extra_args=["--enforce-eager", *extra_args])
    with children_on(cores):
        server.start(START_SECONDS)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def children_on(cores: set[int] | None) -> Iterator[None]:
    """Processes started inside run on these cores, and see no others: vLLM then takes as many threads."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def this_process_on(cores: set[int] | None) -> Iterator[None]:
    """Keep every thread of this process on these cores, with as many torch threads."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    _pin_all_threads(cores)
    torch.set_num_threads(len(cores))
    try:
        yield
    finally:
        _pin_all_threads(before)
        torch.set_num_threads(threads)


def _pin_all_threads(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def split_cores() -> tuple[set[int] | None, set[int] | None]:
    """Cores of the server and of the trainer: half each, or None where there is only one."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None, None
    half = len(cores) // 2
    return set(cores[:half]), set(cores[half:])
