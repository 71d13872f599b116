"""Every file of configs/ that names a GPU fits on it, by the planner's own estimate."""

import re
from pathlib import Path

import pytest

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args, model_name
from grpo_gym.planning import memory, workload
from grpo_gym.planning.hardware import GIB, gpu_rates
from grpo_gym.planning.shapes import KNOWN, find_shape
from tests.docs.markdown import ROOT

CONFIGS = ROOT / "configs"
USABLE = 0.95
"""Of the gigabytes on the box: a 24 GB card may have 22.8 GiB."""
VL_3B = "Qwen/Qwen2.5-VL-3B-Instruct"
VISION_TOWER_BYTES = 0.67e9 * (4 + 2)
"""Frozen: float32 weights, and the 16 bit ones of the passes; its language model is that of Qwen2.5-3B."""


def gpu_gib(path):
    """The memory that the first line of a file names; None where it names none."""
    found = re.search(r"\b(\d+) GB GPU\b", Path(path).read_text().splitlines()[0])
    return int(found[1]) if found else None


def with_gpu(folder):
    return [path.name for path in sorted((CONFIGS / folder).glob("*.yaml")) if gpu_gib(path)]


def colocated_bytes(experiment, gib):
    """Trainer, its runtime, and the share of vLLM; and what of the share is left for the KV cache."""
    args = build_args(experiment)
    load = workload.workload_of(experiment, args, args.batch_plan.completions_per_step, prompt_tokens=256)
    reserved = gpu_rates("h100").reserved_bytes
    share = args.vllm_gpu_memory_utilization * gib * GIB
    trainer = memory.trainer_memory(load, "none", 1).total
    if model_name(experiment) == VL_3B:
        trainer += VISION_TOWER_BYTES
    room = share - reserved - memory.server_memory(load, 0, 1).total
    return trainer + reserved + share, room / memory.row_cache_bytes(load, 1), args


def check_fits(experiment, gib):
    needed, rows, args = colocated_bytes(experiment, gib)
    assert args.vllm_mode == "colocate"
    assert needed <= USABLE * gib * GIB, f"{needed / GIB:.1f} GiB of {gib}"
    assert rows >= args.num_generations, "vLLM has no room for one group"


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    def find(name, trust_remote_code=False):
        return KNOWN["qwen2.5-3b"] if name == VL_3B else find_shape(name, trust_remote_code)

    monkeypatch.setattr(workload, "find_shape", find)


@pytest.mark.parametrize("name", with_gpu("models"))
def test_models_fit(name, write):
    text = f"_base_: [{CONFIGS}/base.yaml, {CONFIGS}/models/{name}]\n"
    check_fits(load_experiment(write("x.yaml", text)), gpu_gib(CONFIGS / "models" / name))


@pytest.mark.parametrize("name", with_gpu("experiments"))
def test_experiments_fit(name):
    path = CONFIGS / "experiments" / name
    check_fits(load_experiment(path), gpu_gib(path))


def test_every_file_but_those_for_laptops_names_its_gpu():
    assert len(with_gpu("models")) == len(list((CONFIGS / "models").glob("*.yaml"))) - 1
    laptops = {p.name for p in (CONFIGS / "experiments").glob("*tiny*.yaml")}
    assert set(with_gpu("experiments")) | laptops == {
        p.name for p in (CONFIGS / "experiments").glob("*.yaml")
    }


def test_the_quickstart_names_experiments_that_fit():
    text = (ROOT / "docs/quickstart.md").read_text()
    rows = re.findall(r"^\| (\d+) GB \| `(configs/[\w./-]+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 3
    assert not [path for gib, path in rows if not gpu_gib(ROOT / path) or gpu_gib(ROOT / path) > int(gib)]
