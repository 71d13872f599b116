"""`grpo-gym compare` as a user types it, in this process."""

import json

import pytest

from grpo_gym.cli import main
from grpo_gym.evaluation.results import results_record, write_json
from grpo_gym.evaluation.summary import summarize_all
from tests.evaluation.helpers import problem


def results(path, outcomes, task="sums"):
    problems = [problem(number, outcome, task) for number, outcome in enumerate(outcomes)]
    return str(write_json(path, results_record(problems, summarize_all(problems), {"kind": "eval"})))


@pytest.fixture
def a(tmp_path):
    return results(tmp_path / "a.json", [[0, 0]] * 8 + [[1, 1]] * 2)


def test_it_prints_difference_interval_and_p(tmp_path, a, capsys):
    assert main(["compare", a, results(tmp_path / "b.json", [[1, 1]] * 10)]) == 0
    out = capsys.readouterr().out
    assert "| all | 10 | 20.0% | 100.0% | +80.0 points | +50.0 to +100.0 | 0.0078 |" in out
    assert "too few" not in out


def test_too_few_problems_are_a_dash(tmp_path, a, capsys):
    b = results(tmp_path / "b.json", [[1, 1]] * 3)
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "| all | 3 | 0.0% | 100.0% | +100.0 points | - | - | +1.000 (-) | - |" in out
    assert "-: too few problems" in out
    assert main(["compare", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["accuracy"]["p"] is None


def test_json(tmp_path, a, capsys):
    assert main(["compare", a, a, "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert (total["accuracy"]["mean"], total["accuracy"]["p"]) == (0.0, 1.0)


def test_a_folder_stands_for_its_results(tmp_path, a, capsys):
    (tmp_path / "run").mkdir()
    results(tmp_path / "run/results.json", [[1, 0]] * 10)
    assert main(["compare", a, str(tmp_path / "run")]) == 0
    assert "+30.0 points" in capsys.readouterr().out


def test_problems_that_only_one_has_are_counted(tmp_path, a, capsys):
    assert main(["compare", a, results(tmp_path / "b.json", [[1, 1]] * 7)]) == 0
    assert "left out: 3 problems only in A" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("{}", "is not an evaluation"),
        ("[]", "is not an evaluation"),
    ],
)
def test_a_file_that_is_no_evaluation(tmp_path, a, content, message, capsys):
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    assert main(["compare", a, str(other)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_problems_that_do_not_match(tmp_path, a, capsys):
    assert main(["compare", a, results(tmp_path / "b.json", [[1]], "maze")]) == 2
    assert "the problems do not match" in capsys.readouterr().err
