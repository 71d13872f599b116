"""The robustness table: what answers are worth, and that none crashes or stalls the grading."""

import asyncio

import pytest
from math_reasoning import GraderPool, UnscorableError, grade
from math_reasoning.parser import single_answer

from .math_reasoning_table import ADVERSARIAL, ANSWERS, REFERENCES, RESPONSES

ASKED = [
    ("Calculate $15-43-75$.", "-103", "15-43-75", False),
    ("Calculate $15-43-75$.", "-103", "-75-43+15", False),
    ("Calculate $15-43-75$.", "-103", "-103", True),
    (r"Simplify $\frac{18}{74}$ to its lowest terms.", r"\frac{9}{37}", "18/74", False),
    (r"Simplify $\frac{18}{74}$ to its lowest terms.", r"\frac{9}{37}", "9/37", True),
    ("Expand $(x-1)(x+1)$.", "x^{2}-1", "(x-1)(x+1)", False),
    ("Expand $(x-1)(x+1)$.", "x^{2}-1", "(x+1)(x-1)", False),
    ("Expand $(x-1)(x+1)$.", "x^{2}-1", "-1+x^2", True),
    ("Factor $x^2-1$.", "(x-1)(x+1)", "-1+x^2", False),
    ("Factor $x^2-1$.", "(x-1)(x+1)", "(1+x)(x-1)", True),
    ("Integrate $2x$ from 0 to x.", "x^2", r"\int_0^x 2t dt", False),
    ("Calculate $(3-9i)(-2+6i)$.", "48+36i", "(3-9i)(-2+6i)", False),
    ("Calculate $(3-9i)(-2+6i)$.", "48+36i", "36i+48", True),
    ("Which is larger, 1/2 or 1/3?", r"\frac{1}{2}", "1/2", True),
    ("What is the percentage of boys?", "50", "50%", True),
    (r"By how many \% does it grow?", "50", r"50\ \%", True),
    ("How much per cent is that?", "9", "9 %", True),
    ("How many percent?", "0.5", "0.5%", False),
    ("How many boys are there?", "50", "50%", False),
    ("What is 3 times 3?", "9", "9%", False),
]


@pytest.fixture(scope="module")
def pool():
    pool = GraderPool(num_workers=1)  # with the deadline of a run
    yield pool
    pool.close()


def test_the_table_is_large_enough():
    assert len(ANSWERS) + len(RESPONSES) + len(ADVERSARIAL) >= 240


def test_answers():
    wrong = [row for row in ANSWERS if grade(row[0], row[1]) != row[2]]
    assert wrong == []


def test_the_form_that_is_asked_for():
    wrong = [row for row in ASKED if grade(row[1], row[2], row[0]) != row[3]]
    assert wrong == []


def test_responses():
    def accuracy(response):
        answer = single_answer(response)
        return answer is not None and grade("42", answer)

    assert [response[:200] for response, expected in RESPONSES if accuracy(response) != expected] == []


@pytest.mark.parametrize("reference", REFERENCES)
def test_adversarial_answers_are_wrong_within_the_deadline(pool, reference):
    assert [answer[:80] for answer in ADVERSARIAL if pool.grade_now(reference, answer)] == []


def test_a_late_answer_is_unscorable_and_the_next_one_is_graded():
    pool = GraderPool(num_workers=1, deadline=1e-4)
    with pytest.raises(UnscorableError, match=r"took longer than 0\.0001 s"):
        pool.grade_now(r"\sqrt{2}", r"\frac{2}{\sqrt{2}}")
    pool.deadline = 20.0
    assert pool.grade_now(r"\sqrt{2}", r"\frac{2}{\sqrt{2}}")
    pool.close()


def test_a_worker_that_dies_is_unscorable_and_replaced(pool):
    assert pool.grade_now("1", "1.0")
    (worker,) = pool._workers
    worker._process.kill()
    with pytest.raises(UnscorableError, match=r"died|ended"):
        pool.grade_now("1", "1.0")
    assert pool.grade_now("1", "1.0")


def test_the_event_loop_runs_on_while_answers_are_graded(pool):
    async def main():
        ticks = 0
        grading = asyncio.ensure_future(
            asyncio.gather(*(pool.grade("x^2", f"x^2+{i}-{i}") for i in range(20)))
        )
        while not grading.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks, grading.result()

    ticks, results = asyncio.run(main())
    assert results == [True] * 20
    assert ticks > 5


def test_closing_ends_the_processes():
    pool = GraderPool(num_workers=1)
    pool.grade_now("1", "1.0")
    (worker,) = pool._workers
    pool.close()
    assert worker._process.poll() is not None


@pytest.mark.parametrize("arguments", [{"num_workers": 0}, {"deadline": 0}, {"deadline": float("inf")}])
def test_impossible_pools(arguments):
    with pytest.raises(ValueError, match=r"at least 1|above 0"):
        GraderPool(**arguments)
