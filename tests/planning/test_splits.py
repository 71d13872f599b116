"""Which split wins and what does not fit."""

import dataclasses
import math

import pytest

from grpo_gym.planning import costs
from grpo_gym.planning.hardware import GIB, GPU_TYPES, Rates, gpu_rates
from grpo_gym.planning.shapes import KNOWN, find_shape
from grpo_gym.planning.splits import all_splits
from grpo_gym.planning.workload import Workload


def load_of(name, **changes):
    settings = {
        "shape": KNOWN[name], "completions": 128, "group_size": 16, "prompt_tokens": 300,
        "completion_tokens": 512, "longest_completion": 1024, "max_completion_length": 1024,
        "gradient_checkpointing": True, "overlapped": True,
    }  # fmt: skip
    return Workload(**settings | changes)


def best(load, gpu, count):
    split = all_splits(load, gpu_rates(gpu), count)[0]
    assert split.fits, split.problems
    return split


def test_a_small_model_trains_on_one_gpu_with_its_server():
    split = best(load_of("qwen2.5-0.5b"), "h100", 1)
    assert (split.name, split.overlapped) == ("colocate", False)


def test_what_does_not_fit_says_how_much_is_missing():
    (split,) = all_splits(load_of("qwen2.5-7b"), gpu_rates("rtx4090"), 1)
    assert not split.fits
    assert "22.1 are usable" in split.problems[0]


@pytest.mark.parametrize("name", ["qwen2.5-7b", "qwen2.5-14b"])
def test_the_least_sharding_that_fits_is_chosen(name):
    split = best(load_of(name), "h100", 8)
    assert split.sharding != "none"
    assert split.trainer_bytes <= gpu_rates("h100").memory_bytes
    assert split.server_gpus + split.trainer_gpus == 8


def test_a_model_too_large_for_one_gpu_is_served_tensor_parallel():
    splits = all_splits(load_of("qwen2.5-32b"), gpu_rates("l40s"), 64)
    fitting = [split for split in splits if split.fits]
    assert fitting
    assert all(split.tensor_parallel > 1 for split in fitting)


def test_splits_that_do_not_divide_the_batch_are_refused_with_the_reason():
    splits = all_splits(load_of("qwen2.5-0.5b"), gpu_rates("h100"), 4)
    (three,) = [s for s in splits if s.trainer_gpus == 3]
    assert three.problems == ["128 completions do not divide over 3 trainers"]


def test_longer_completions_move_gpus_to_the_servers():
    lengths = {"completions": 1024, "prompt_tokens": 200}
    short = best(load_of("qwen2.5-1.5b", completion_tokens=64, longest_completion=64, **lengths), "h100", 8)
    long = best(
        load_of("qwen2.5-1.5b", completion_tokens=1024, longest_completion=8192, **lengths), "h100", 8
    )
    assert long.server_gpus > short.server_gpus


def test_overlap_hides_the_shorter_side():
    together = best(load_of("qwen2.5-1.5b"), "h100", 2)
    apart = best(load_of("qwen2.5-1.5b", overlapped=False), "h100", 2)
    s = together.seconds
    training = s["train"] + s["optimizer"] + s["communication"]
    assert apart.step_seconds - together.step_seconds == pytest.approx(min(s["rollout"], training))


@pytest.mark.parametrize("gpu", GPU_TYPES)
def test_more_of_everything_costs_more(gpu):
    base = load_of("qwen2.5-0.5b")
    rates = gpu_rates(gpu)

    def seconds(**changes):
        split = all_splits(dataclasses.replace(base, **changes), rates, 1)[0]
        return split.step_seconds

    assert seconds() < seconds(completions=256)
    assert seconds() < seconds(completion_tokens=1024)
    assert seconds() < seconds(prompt_tokens=1000)
    assert seconds() < seconds(has_reference=True)
    assert seconds() < seconds(shared_prefix=False)
    assert seconds(num_iterations=2) < seconds()


def test_training_flops_are_six_per_weight_and_token():
    load = load_of(
        "qwen2.5-7b", prompt_tokens=1, gradient_checkpointing=False, shared_prefix=False, group_size=1
    )
    shape, tokens = load.shape, load.completions * load.completion_tokens
    attention = 12 * shape.num_layers * shape.query_size * (1 + load.completion_tokens / 2) * tokens
    expected = 6 * (shape.trunk_matrices + shape.head_matrix) * tokens + attention
    assert costs.train_work(load).flops == pytest.approx(expected, rel=0.003)


def test_decoding_one_row_reads_every_weight_once_per_token():
    load = load_of("qwen2.5-7b", completions=1, group_size=1, completion_tokens=100, longest_completion=100)
    shape = load.shape
    weights = 2 * (shape.trunk_matrices + shape.head_matrix)
    cache = (300 + 50) * shape.kv_bytes_per_token(2)
    assert costs.decode_work(load, 1).bytes == 100 * (weights + cache)


def test_rates_survive_their_file():
    rates = dataclasses.replace(gpu_rates("h100"), link_bytes=math.inf)
    assert Rates.from_json(rates.to_json()) == rates


def test_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"h1000: known are a100-40.*cpu with --rates"):
        gpu_rates("h1000")


def test_in_process_on_a_cpu_takes_both_phases_in_turn():
    load = load_of(
        "qwen2.5-0.5b", shape=find_shape("tiny"), uses_server=False, compute_width=4, serve_width=4
    )
    rates = dataclasses.replace(gpu_rates("l4"), memory_bytes=4 * GIB)
    (split,) = all_splits(load, rates, 1, on_cpu=True)
    s = split.seconds
    assert split.step_seconds == pytest.approx(s["rollout"] + s["train"] + s["optimizer"] + s["overhead"])
