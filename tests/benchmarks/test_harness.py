"""Results of benchmarks: what is written, and how ratios are made."""

import json

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.harness import Pairs, Result, Spread, interleave
from benchmarks.ready_rollouts import BAR_CELL, Cell, completion_lengths, make_groups, select_cells


def test_a_result_is_written_as_json_markdown_and_picture(tmp_path):
    result = Result("speed", ["train_step", "--cells", "bar"])
    result.figures = {"speed_ratio": 3.14159}
    result.rows = [{"cell": "p256", "ratio": 3.14159}]
    result.notes = ["a note"]
    result.write(lambda axes: axes.plot([1, 2]), tmp_path)
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["figures"] == {"speed_ratio": 3.142}
    assert record["command"] == "python -m benchmarks train_step --cells bar"
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["torch_threads"] >= 1
    assert record["versions"]["trl"] == "1.16.0"
    assert "| p256 | 3.14 |" in (tmp_path / "speed.md").read_text()
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_results_name_no_machine_paths(tmp_path):
    Result("speed", ["startup"]).write(lambda axes: None, tmp_path)
    text = (tmp_path / "speed.json").read_text() + (tmp_path / "speed.md").read_text()
    assert not any(path in text for path in ("/root", "/opt", "/home", "/work", str(tmp_path)))


def test_pairs_alternate_the_order_and_drop_the_warm_up():
    calls = []

    def run(name, seconds):
        return lambda index: calls.append((name, index)) or seconds

    pairs = interleave(run("ours", 1.0), run("trl", 3.0), num_pairs=2)
    assert [name for name, _ in calls] == ["ours", "trl", "ours", "trl", "trl", "ours"]
    assert pairs.speed_ratio == Spread(3.0, 3.0, 3.0)


def test_a_ratio_is_taken_pair_by_pair():
    pairs = Pairs(ours=[1.0, 10.0, 1.0], theirs=[2.0, 20.0, 4.0])  # the machine was busy in the second pair
    assert pairs.speed_ratio == Spread(2.0, 2.0, 4.0)


def test_cells_are_selected_by_name():
    assert select_cells("bar") == [BAR_CELL]
    assert len(select_cells("grid")) == 18
    assert select_cells("p64_c32_g8,p1_c2_g4") == [Cell(64, 32, 8), Cell(1, 2, 4)]
    with pytest.raises(ValueError, match="p256_c64_g8"):
        select_cells("big")


def test_completion_lengths_have_the_asked_mean():
    lengths = completion_lengths(Cell(1, 100, 8), 0.5, 20_000, np.random.default_rng(0))
    assert np.mean(lengths) == pytest.approx(100, rel=0.02)
    assert np.std(np.log(lengths)) == pytest.approx(0.5, rel=0.05)


def test_ready_rollouts_depend_on_the_seed_alone():
    first, again, other = (make_groups(BAR_CELL, 100, 0.5, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_an_unknown_benchmark_is_answered_with_the_names():
    with pytest.raises(SystemExit, match="train_step"):
        main(["speed"])
