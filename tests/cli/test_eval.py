"""`grpo-gym eval` as a user types it, in this process."""

import json
from pathlib import Path

import pytest

from grpo_gym.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/eval/tiny_leg_counting.yaml")
SMALL = ("categories.arithmetic.leg_counting.size=3", "repeats=2")


def test_it_writes_json_markdown_and_a_picture(tmp_path, capsys):
    assert main(["eval", "--config", CONFIG, *SMALL, f"output_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "6 completions sampled, 0 were there already" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["summary"]["all"]) >= {"accuracy", "format_rate", "reward", "pass_at_k"}
    assert results["summary"]["by_category"]["arithmetic"]["num_samples"] == 6
    assert len(results["problems"]) == 3
    report = (tmp_path / "report.md").read_text()
    assert "leg_counting (arithmetic) | 3 | 6 |" in report
    assert "pass@2" in report
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_changed_settings_in_the_same_folder_are_refused(tmp_path, capsys):
    command = ["eval", "--config", CONFIG, *SMALL, f"output_dir={tmp_path}"]
    assert main(command) == 0
    assert main([*command, "temperature=0.5"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "temperature is 0.5" in error
    assert "choose another output_dir, or delete that file" in error


def test_dry_run_counts_and_loads_no_model(capsys):
    assert main(["eval", "--config", CONFIG, "model=./nowhere", "--dry-run"]) == 0
    assert "64 problems x 4 = 256 completions of at most 96 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=./nowhere"], "no folder './nowhere'"),
        (["model=m", "base_url=http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1 does not answer"),
        (["categories.arithmetic.chain_sums.size=2"], "did you mean 'chain_sum'"),
        (["repeat=2"], "did you mean 'repeats'"),
        (["repeats=zero"], "repeats: input should be a valid integer"),
        (["another.yaml"], "give one evaluation (--config FILE), not 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, words, message):
    assert main(["eval", "--config", CONFIG, f"output_dir={tmp_path / 'out'}", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo-gym: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_no_file_at_all(capsys):
    assert main(["eval"]) == 2
    assert "give one evaluation" in capsys.readouterr().err
