"""What the user may ask for, and what is said when it cannot be had."""

import json
import re
from fractions import Fraction

import pytest
import reasoning_gym_tasks
from reasoning_gym.factory import CURRICULA
from reasoning_gym_tasks.entries import decode_entry, encode_entry
from reasoning_gym_tasks.guards import is_safe_answer
from reasoning_gym_tasks.parser import StrictXMLParser, last_closed
from reasoning_gym_tasks.tasks import TaskSpec, parse_gym


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("arithmetic_basic", "did you mean 'basic_arithmetic'?"),
        ("algebra_linear_1var", "did you mean 'simple_equations'?"),
        ("game_of_24", "did you mean 'puzzle24'?"),
        ("missing_letter", "did you mean 'letter_counting'?"),
        ("chess_notation", "did you mean 'n_queens' or 'knight_swap'?"),
        ("leg_countin", "did you mean 'leg_counting'"),
        ("fizzbuzz", "none is called anything like it"),
        ("composite", "pass a list of task names"),
    ],
)
def test_wrong_names_get_a_suggestion(name, meant):
    with pytest.raises(ValueError, match=re.escape(meant)) as caught:
        parse_gym(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gym", "config", "message"),
    [
        ("leg_counting", {"max_animal": 3}, "no setting 'max_animal'; did you mean 'max_animals'"),
        ("leg_counting", {"zzz": 3}, "it has min_animals, max_animals"),
        ("leg_counting", {"seed": 3}, "use seed / eval_seed"),
        ("leg_counting", {"size": 3}, "use num_train_examples / num_eval_examples"),
        ("leg_counting", {"min_animals": 5, "max_animals": 2}, "'leg_counting' refuses"),
        ("leg_counting", {"min_animals": "five"}, "'leg_counting' refuses"),
        (["leg_counting", "n_queens"], {"n": 8}, "give each task its own"),
        (
            [{"name": "n_queens", "weigth": 2}],
            None,
            "unknown key 'weigth' beside task 'n_queens'; did you mean",
        ),
        ([{"name": "n_queens", "weight": 0}], None, "weight of task 'n_queens' must be a number above 0"),
        ([{"name": "n_queens", "weight": float("nan")}], None, "above 0"),
        ([{"task": "n_queens"}], None, "each task is a name or"),
        ([], None, "empty list"),
    ],
)
def test_impossible_requests_are_one_clear_line(gym, config, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_gym(gym, config)
    assert "\n" not in str(caught.value)


def test_names_mappings_and_lists_are_understood():
    assert parse_gym("n_queens", {"n": 9}) == (TaskSpec("n_queens", 1.0, {"n": 9}),)
    assert parse_gym({"name": "n_queens", "weight": 2}) == (TaskSpec("n_queens", 2, {}),)
    assert [spec.name for spec in parse_gym(["leg_counting", {"name": "maze"}])] == ["leg_counting", "maze"]


def test_entries_survive_being_written_down():
    metadata = {
        "pair": (1, ("a", [2.5, None])),
        "colors": {1: "red", 2: "blue"},
        "seen": {"x", "y"},
        "flag": True,
        "share": Fraction(1, 3),
    }
    entry = {"question": "q", "answer": None, "metadata": metadata}
    assert decode_entry(encode_entry(entry), "q") == entry


def test_an_entry_that_cannot_be_written_down_is_refused():
    with pytest.raises(TypeError, match="holds a object"):
        encode_entry({"question": "q", "answer": "a", "metadata": {"thing": object()}})


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("n_queens", "__import__('os').system('true')"),
        ("binary_matrix", "[[0, 1], [().__class__, 1]]"),
        ("spiral_matrix", "[i for i in range(10**9)]"),
        ("string_insertion", "'A' * 10**10"),
        ("countdown", "9**9**9"),
        ("countdown", "9**(9*9*999*999)"),
        ("puzzle24", "print(24)"),
        ("puzzle24", "99999999!"),
        ("simple_integration", "x.__class__"),
        ("simple_integration", "Integral(x, x).doit()"),
        ("polynomial_multiplication", "'x'"),
        ("polynomial_multiplication", "x**'9'"),
    ],
)
def test_answers_that_would_be_executed_never_reach_the_scorer(task, answer):
    assert not is_safe_answer(task, answer)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("n_queens", "_ Q _ _\n_ _ _ Q"),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]"),
        ("string_insertion", "ABCDE"),
        ("spiral_matrix", "1 2 3 -4"),
        ("countdown", "(25 + 3*4) / 2 - 1"),
        ("simple_integration", "3*X**4/2 + C"),
        ("intermediate_integration", "-exp(x)*sin(x)/2 + log(Abs(x)) + C"),
        ("leg_counting", "__import__('os')"),
    ],
)
def test_ordinary_answers_do(task, answer):
    assert is_safe_answer(task, answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("</answer>1<answer>", None),
        ("5", None),
    ],
)
def test_only_the_last_closed_answer_is_read(text, expected):
    assert last_closed(text, "answer") == expected
    assert StrictXMLParser().parse_answer([{"role": "assistant", "content": text}]) == expected


@pytest.mark.parametrize(
    ("fields", "text", "reward"),
    [
        (["think", "answer"], "<think>a</think>\n<answer>b</answer>\n", 1.0),
        (["think", "answer"], "<answer>b</answer><think>a</think>", 0.0),
        (["think", "answer"], "well <think>a</think><answer>b</answer>", 0.0),
        (["think", "answer"], "<think>a</think> so <answer>b</answer>", 0.0),
        (["think", "answer"], "<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        (["think", "answer"], "<think>a</think><answer>b", 0.0),
        (["answer"], "step by step <answer>b</answer>", 1.0),
        (["answer"], "<answer>b</answer> the end", 0.0),
    ],
)
def test_format_is_all_or_nothing(fields, text, reward):
    assert (
        StrictXMLParser(fields).get_format_reward_func()([{"role": "assistant", "content": text}]) == reward
    )


def test_a_parser_without_the_answer_tag_is_refused():
    with pytest.raises(ValueError, match="lack 'answer'"):
        StrictXMLParser(["think"])


def test_levels_are_those_of_reasoning_gyms_curriculum():
    env = reasoning_gym_tasks.load_environment([{"name": "leg_counting", "level": 4}], num_train_examples=40)
    difficulty = [json.loads(env.row(i)["info"]["difficulty"]) for i in range(40)]
    curriculum = CURRICULA["leg_counting"]()
    curriculum.set_global_level(4)
    settings = curriculum.generate_configuration()
    assert {d["num_animals"][1] for d in difficulty} == {settings.max_animals} == {5}
    assert {d["num_instances"][1] for d in difficulty} == {settings.max_instances}


def test_a_list_of_levels_makes_the_split_harder_and_harder():
    gym = [{"name": "leg_counting", "level": [0, 2, 5], "config": {"max_instances": 9}}]
    env = reasoning_gym_tasks.load_environment(gym, num_train_examples=9, num_eval_examples=3)
    difficulty = [json.loads(env.row(i)["info"]["difficulty"]) for i in range(9)]
    assert [d["num_animals"][1] for d in difficulty] == [1, 1, 1, 3, 3, 3, 6, 6, 6]
    assert {d["num_instances"][1] for d in difficulty} == {9}
    assert json.loads(env.row(2, "eval")["info"]["difficulty"])["num_animals"][1] == 6


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"name": "leg_counting", "level": 99}, "task 'leg_counting' has the levels 0 to 35, not 99"),
        ({"name": "leg_counting", "level": []}, "empty list"),
        ({"name": "composite", "level": 1}, "not a task by itself"),
        ({"name": "list_functions", "level": 1}, "has no difficulty levels; set its config instead"),
        ({"name": "rubiks_cube", "level": 4}, "refuses its config"),
    ],
)
def test_levels_that_a_task_does_not_have(member, message):
    with pytest.raises(ValueError, match=message):
        reasoning_gym_tasks.load_environment([member])
