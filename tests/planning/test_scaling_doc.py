"""docs/scaling.md: its plan commands run, its tables are those of the results files."""

import json
import re
import shlex
from pathlib import Path

import pytest

from grpo_gym.cli import main
from tools.render_scaling import RESULTS, render

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/scaling.md").read_text()
COMMANDS = re.findall(r"^grpo-gym (plan .*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_plan_command_runs(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) in (0, 1)  # 1: nothing fits, which is an answer
    assert capsys.readouterr().out


def test_the_document_has_commands():
    assert len(COMMANDS) == 3


def test_the_tables_are_those_of_the_results():
    assert render(TEXT, RESULTS) == TEXT


def test_a_table_is_filled_and_filled_again(tmp_path):
    (tmp_path / "parts.md").write_text("# parts\n\n| size | s |\n| --- | --- |\n| 1 | 2 |\n")
    facts = {"cpu": "a CPU", "cores": 2}
    record = {
        "command": "python -m benchmarks parts",
        "git_commit": "abc",
        "machine": facts,
        "notes": ["a note"],
    }
    (tmp_path / "parts.json").write_text(json.dumps(record))
    text = "before\n<!-- table parts -->\n<!-- end -->\nafter\n"
    once = render(text, tmp_path)
    assert "| 1 | 2 |" in once
    assert "`python -m benchmarks parts` at abc on a CPU, 2 cores." in once
    assert "- a note" in once
    assert render(once, tmp_path) == once
    assert once.endswith("<!-- end -->\nafter\n")


def test_a_table_without_results_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.md"):
        render("<!-- table other -->\n<!-- end -->\n", tmp_path)


def test_the_plan_is_within_the_bound_that_the_document_names():
    figures = json.loads((RESULTS / "plan_check.json").read_text())["figures"]
    assert figures["largest_seconds_error"] <= 0.25
    assert figures["largest_memory_error"] <= 0.25
    assert "an error within 25%" in TEXT
