"""Both programs of `train_step` do the same work: same loss, same gradient."""

import json

import pytest

from benchmarks.programs import make_program, zero_gradients
from benchmarks.ready_rollouts import Cell, make_groups
from benchmarks.shapes import model_config, random_model
from benchmarks.train_step import gradient_difference, main

CELL = Cell(prompt_length=24, mean_completion=8, group_size=4)


def programs(num_groups):
    return [
        make_program(name, random_model("tiny", layers=2), CELL.group_size, "float32", num_groups)
        for name in ("ours", "trl")
    ]


@pytest.mark.parametrize("num_groups", [1, 2])
def test_both_programs_have_the_same_loss_and_gradient(num_groups):
    ours, trl = programs(num_groups)
    groups = make_groups(CELL, ours.model.config.vocab_size, 0.5, seed=0, num_groups=num_groups)
    assert gradient_difference(ours, trl, groups) < 1e-4
    losses = []
    for program in (ours, trl):
        zero_gradients(program.model)
        losses.append(program.step(groups))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert abs(losses[0]) > 1e-4  # lengths differ, so advantages do not cancel


def test_fewer_layers_shrink_the_vocabulary_in_proportion():
    config = model_config("smollm2-135m", layers=3)
    assert config.num_hidden_layers == 3
    assert config.vocab_size == pytest.approx(49152 / 10, rel=0.01)


def test_a_small_run_writes_its_result(tmp_path):
    options = ["--model", "tiny", "--layers", "1", "--cells", CELL.name, "--pairs", "2", "--no-memory"]
    main([*options, "--threads", "1", "--folder", str(tmp_path)])
    figures = json.loads((tmp_path / "train_step.json").read_text())["figures"]
    assert figures[f"speed_ratio_{CELL.name}"] > 0
    assert figures[f"gradient_difference_{CELL.name}"] < 1e-4
