"""The log of a run, read back."""

import json

import pytest

from grpo_gym.reporting.run_log import read_log
from tests.reporting.synthetic_run import log_entry, write_log


def write_state(folder, entries):
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries, "max_steps": 9}))


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path):
    write_log(tmp_path, steps=3, max_steps=10)
    with (tmp_path / "log_history.jsonl").open("a") as file:
        file.write('{"loss": 0.1, "rew')
    log = read_log(tmp_path)
    assert (log.last_step, log.max_steps) == (3, 10)
    assert [step for step, _ in log.points("reward")] == [1, 2, 3]


def test_a_broken_line_is_named(tmp_path):
    write_log(tmp_path, steps=3, max_steps=3)
    text = (tmp_path / "log_history.jsonl").read_text()
    (tmp_path / "log_history.jsonl").write_text(text.replace('{"loss"', "loss", 1))
    with pytest.raises(ValueError, match=r"line 3 of .*log_history.jsonl is not JSON"):
        read_log(tmp_path)


def test_without_it_the_newest_checkpoint_tells(tmp_path):
    for step in (9, 10):
        write_state(tmp_path / f"checkpoint-{step}", [log_entry(s) for s in range(1, step + 1)])
    assert read_log(tmp_path).last_step == 10
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"log_history": [log_entry(12)], "max_steps": 12})
    )
    assert read_log(tmp_path).last_step == 12


def test_of_two_values_at_a_step_the_newest_counts_and_nan_never(tmp_path):
    entries = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": float("nan")}, {"step": 1, "kl": 0.7}]
    write_state(tmp_path / "checkpoint-2", entries)
    assert read_log(tmp_path).points("kl") == [(1, 0.7)]


def test_a_state_that_is_none_is_named(tmp_path):
    (tmp_path / "trainer_state.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"trainer_state.json is not a trainer state"):
        read_log(tmp_path)
