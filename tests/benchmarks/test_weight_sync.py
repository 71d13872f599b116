"""Files and helpers of `weight_sync`; its pushes need a vf-vllm server."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import Result
from benchmarks.peak_memory import high_water_mark_mib, reset_high_water_mark
from benchmarks.real_server import children_on, model_folder, split_cores, this_process_on
from benchmarks.weight_sync import Push, make_memcpy, median_phases, parse_args, summarize


def test_results_are_written_and_say_what_bounds_the_sync(tmp_path):
    pushes = [Push(s, {"pause": 0.1, "send": s - 0.1}, extra_mib=64.0) for s in (0.4, 0.5, 0.6)]
    args = parse_args(["--folder", str(tmp_path)])
    summarize(Result("weight_sync", ["weight_sync"]), pushes, [0.1, 0.1, 0.1], 500_000_000, args)
    record = json.loads((tmp_path / "weight_sync.json").read_text())
    assert record["figures"]["sync_over_memcpy"] == pytest.approx(5.0)
    assert record["figures"]["gb_per_second_sync"] == pytest.approx(1.0)
    assert record["figures"]["extra_mib_trainer"] == 64.0
    assert "Bound by: send, 80% of the sync." in record["notes"]
    assert median_phases(pushes) == {"pause": 0.1, "send": 0.4}


def test_a_random_model_of_a_shape_can_be_loaded_with_its_tokenizer():
    with model_folder("smollm2-135m", layers=1) as path:
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.config.hidden_size == 576
        assert AutoTokenizer.from_pretrained(path).chat_template
        copy = make_memcpy(model)
        assert copy() > 0
    with model_folder("tiny") as path:
        assert AutoModelForCausalLM.from_pretrained(path).config.vocab_size == 1024


def test_extra_memory_is_the_growth_of_the_high_water_mark():
    before = reset_high_water_mark()
    block = torch.ones(16 * 2**20)  # 64 MiB
    del block
    assert 60 < high_water_mark_mib() - before < 100


def test_threads_are_pinned_and_set_free_again():
    import os

    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    one = {min(before)}
    with children_on(one):
        assert os.sched_getaffinity(0) == one
    with this_process_on(one):
        assert torch.get_num_threads() == 1
        assert {frozenset(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")} == {
            frozenset(one)
        }
    assert os.sched_getaffinity(0) == before
    assert torch.get_num_threads() == threads
    server, trainer = split_cores()
    assert server is None or not server & trainer
