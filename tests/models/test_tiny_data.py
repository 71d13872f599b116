import re
from random import Random

import pytest
from tiny_model.manners import Mix, write_answer
from tiny_model.measure import extract_answer
from tiny_model.tasks import held_out_leg_counting, training_problems, work_sum

PROBLEMS = training_problems(400, seed=3)


def test_every_equation_of_a_worked_answer_holds():
    checked = 0
    for problem in PROBLEMS:
        for left, right in re.findall(r"([\d+*-]*\d)=(\d+)", problem.steps):
            assert eval(left) == int(right), problem
            checked += 1
    assert checked > len(PROBLEMS)


def test_a_calculation_ends_in_its_answer():
    calculations = [p for p in PROBLEMS if "=" in p.steps]
    assert len(calculations) > len(PROBLEMS) / 2
    for problem in calculations:
        assert re.split(r"[=, ]", problem.steps)[-1] == problem.answer


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("17 + 25", "7+5=12, 1+2+1=4, 42"),
        ("50 + 60", "0+0=0, 5+6=11, 110"),
        ("42 - 17", "12-7=5, 4-1-1=2, 25"),
        ("9 - 4", "9-4=5, 0-0=0, 5"),
    ],
)
def test_sums_are_worked_in_columns(expression, steps):
    assert work_sum(expression) == steps


@pytest.mark.parametrize(
    ("expression", "reason"), [("2 * 3", "not a sum"), ("100 + 1", "not a sum"), ("3 - 5", "negative")]
)
def test_sums_out_of_reach_are_refused(expression, reason):
    with pytest.raises(ValueError, match=reason):
        work_sum(expression)


def test_spelling_and_letter_counting_steps_end_in_the_answer():
    letters = [p for p in PROBLEMS if "letter" in p.question]
    words = [p for p in PROBLEMS if "backward" in p.question]
    assert letters
    assert words
    assert all(p.steps.endswith(f" {p.answer}") for p in letters)
    assert all(p.steps.split(", ")[1].replace("-", "") == p.answer for p in words)


def test_held_out_questions_of_several_animals_are_not_trained_on():
    trained = {p.question for p in training_problems(5_000, seed=0)}
    several = [p.question for p in held_out_leg_counting() if ", " in p.question.split(" if ")[-1]]
    assert len(several) > 500
    assert not trained & set(several)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    assert training_problems(100, seed=3) == training_problems(100, seed=3)
    assert training_problems(100, seed=4) != training_problems(100, seed=3)


@pytest.mark.parametrize(("manner", "parsed"), [("worked", True), ("tagged", True), ("untagged", False)])
def test_manners_differ_in_tags(manner, parsed):
    problem = PROBLEMS[0]
    text = write_answer(problem, manner, Random(0))
    assert (extract_answer(text) == problem.answer) is parsed
    assert text.startswith("<think>") is (manner == "worked")


def test_mix_draws_its_shares():
    rng = Random(0)
    drawn = [Mix(worked=0.2, tagged=0.5).sample(rng) for _ in range(4_000)]
    assert drawn.count("worked") / 4_000 == pytest.approx(0.2, abs=0.03)
    assert drawn.count("untagged") / 4_000 == pytest.approx(0.3, abs=0.03)
