"""`grpo-gym report` as a user types it."""

import json

import pytest

from grpo_gym.cli import main


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    entries = [{"step": step, "reward": 0.1 * step, "loss": 0.0} for step in range(1, 5)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries, "max_steps": 4}))
    return folder


def test_it_says_where_the_report_is(run_dir, capsys):
    assert main(["report", str(run_dir)]) == 0
    assert f"report: {run_dir / 'report.html'} (" in capsys.readouterr().out
    assert (run_dir / "report.html").read_text().startswith("<!doctype html>")


def test_out_names_the_file(run_dir, tmp_path):
    assert main(["report", str(run_dir), "--out", str(tmp_path / "a.html"), "--max-completions", "10"]) == 0
    assert (tmp_path / "a.html").is_file()
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "holds no training run"),
        (["run", "--max-completions", "-1"], "must be 0 or more"),
        (["run", "--out", "run"], "Is a directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run_dir, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("grpo-gym: error: ")
    assert message in line
