"""The report's file, without a browser (with one: tests/end_to_end/test_report_in_chromium.py)."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from grpo_gym.reporting.report import read_run, write_report
from tests.reporting.synthetic_run import make_run

ROOT = Path(__file__).parents[2]


def report(folder, **kwargs):
    path, _ = write_report(folder, **kwargs)
    return path.read_text(encoding="utf-8")


def test_it_is_one_file_that_loads_nothing(run_dir):
    html = report(run_dir)
    assert (run_dir / "report.html").is_file()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.search(r"<(script|img|iframe)[^>]+src=|<link[^>]+href=\"(?!data:)|@import|url\(", html)
    assert "default-src 'none'" in html


def test_texts_of_the_model_are_nowhere_in_the_markup(run_dir):
    assert "how many legs" not in report(run_dir)


def test_the_config_is_shown_and_escaped(run_dir):
    config = {
        "training": {"run_name": "</title><script>alert(1)</script>"},
        "model": {"model_name_or_path": "tiny"},
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    html = report(run_dir)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "<span>tiny</span>" in html


def test_a_run_without_completions(run_dir):
    shutil.rmtree(run_dir / "completions")
    html = report(run_dir)
    assert "no completions on disk" in html
    assert 'id="training-charts"' in html


def test_a_run_without_a_log(run_dir):
    (run_dir / "log_history.jsonl").unlink()
    html = report(run_dir)
    assert "No log was found" in html
    assert 'id="training-charts"' not in html
    assert 'id="filters"' in html


def test_a_run_of_which_only_a_checkpoint_is_left(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    state = {"log_history": [{"step": 5, "reward": 0.5, "loss": 0.0}], "max_steps": 10}
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text(json.dumps(state))
    assert "step 5 of 10" in report(tmp_path)


def test_a_folder_without_a_run_and_no_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no training run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read_run(tmp_path / "nowhere")


def test_the_same_run_gives_the_same_data(run_dir):
    first, second = (re.findall(r'id="(?:data|chunk-\d+)">([^<]+)', report(run_dir)) for _ in range(2))
    assert first == second
    assert len(first) == 2


def test_out_and_a_limit_and_less_than_a_hundred_bytes_per_completion(tmp_path):
    make_run(tmp_path, steps=10, groups=50, size=20)
    path, run = write_report(tmp_path, tmp_path / "elsewhere" / "r.html", max_completions=5000)
    assert path == tmp_path / "elsewhere" / "r.html"
    assert len(run.completions.rows["group"]) == 5000
    assert path.stat().st_size < 100 * 5000


def test_the_page_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["grpo_gym"]
    packaged = {path for pattern in patterns for path in (ROOT / "grpo_gym").glob(pattern)}
    templates = set((ROOT / "grpo_gym/reporting/templates").iterdir())
    assert len(templates) > 4
    assert templates <= packaged
