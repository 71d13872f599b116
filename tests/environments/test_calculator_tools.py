"""The calculator environment: its tool, its problems, its reward."""

import asyncio

import pytest
import verifiers as vf
from calculator_tools import calculate, load_environment
from calculator_tools.environment import AnswerParser, correct_answer
from calculator_tools.problems import make_problems


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("6*7", "42"),
        ("6 * 7", "42"),
        ("(17 + 4) * 3 - 1", "62"),
        ("7/2", "3.5"),
        ("1/3", "0.333333333333"),
        ("7 // 2", "3"),
        ("7 % 4", "3"),
        ("2 ** 10", "1024"),
        ("-3 - -4", "1"),
        ("0.1 + 0.2", "0.3"),
    ],
)
def test_the_calculator_is_exact(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1/0", "division by zero"),
        ("7 % 0", "division by zero"),
        ("two plus two", "not an arithmetic expression"),
        ("", "not an arithmetic expression"),
        ("__import__('os').getcwd()", "only numbers"),
        ("x + 1", "only numbers"),
        ("[1] * 9", "only numbers"),
        ("'a' * 9", "only numbers"),
        ("True + 1", "only numbers"),
        ("9 ** 9 ** 9", "exponents"),
        ("((9 ** 99) ** 99) ** 99", "too large"),
        ("(" * 150 + "1", "not an arithmetic expression"),
        ("1" * 500, "at most 200 characters"),
        (3, "must be a text"),
    ],
)
def test_what_cannot_be_computed_is_one_line_for_the_model(expression, message):
    with pytest.raises(ValueError, match=message) as caught:
        calculate(expression)
    assert "\n" not in str(caught.value)


def test_problems_are_deterministic_and_disjoint():
    train, held_out = make_problems(100, 20, seed=3)
    again, same = make_problems(150, 20, seed=3)
    assert again["question"][:100] == train["question"][:]
    assert same["question"][:] == held_out["question"][:]
    assert not set(train["question"]) & set(held_out["question"])
    assert len(set(train["question"])) == 100
    for row in train:
        assert calculate(row["question"].removeprefix("What is ").removesuffix("?")) == row["answer"]


def test_too_many_problems_and_unknown_operators():
    with pytest.raises(ValueError, match="only about"):
        make_problems(1000, 0, max_digits=1, operators=["+"])
    with pytest.raises(ValueError, match="out of"):
        make_problems(10, 0, operators=["^"])
    with pytest.raises(ValueError, match="num_terms at least 2"):
        make_problems(10, 0, num_terms=1)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<answer>42</answer>", 1.0),
        ("It is <answer> 42 </answer>.", 1.0),
        ("<answer>42.0</answer>", 1.0),
        ("<answer>41</answer>", 0.0),
        ("<answer>6*7</answer>", 0.0),
        ("<answer>42</answer><answer>43</answer>", 0.0),
        ("<answer>42", 0.0),
        ("42", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>forty-two</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_wants_one_number_in_the_tags(text, reward):
    assert correct_answer([vf.AssistantMessage(content=text)], "42", AnswerParser(["answer"])) == reward


def test_only_the_last_message_counts():
    messages = [
        vf.AssistantMessage(content="<answer>42</answer>"),
        vf.ToolMessage(tool_call_id="a", content="42"),
        vf.AssistantMessage(content="so what?"),
    ]
    assert correct_answer(messages, "42", AnswerParser(["answer"])) == 0.0


def test_it_is_a_tool_env_that_vf_load_environment_finds():
    env = vf.load_environment("calculator-tools", num_train_examples=8, num_eval_examples=4, operators=["*"])
    assert isinstance(env, vf.ToolEnv)
    assert [tool.name for tool in env.tool_defs] == ["calculate"]
    assert "expression" in env.tool_defs[0].parameters["properties"]
    assert all("*" in question for question in env.get_dataset()["question"])
    assert len(env.get_eval_dataset()) == 4


def test_an_error_of_the_tool_is_told_to_the_model():
    env = load_environment(num_train_examples=2, num_eval_examples=1)
    call = vf.ToolCall(id="1", name="calculate", arguments='{"expression": "1/0"}')
    message = vf.AssistantMessage(content="", tool_calls=[call])
    (answer,) = asyncio.run(env.env_response([message], {"trajectory": []}))
    assert answer.content == "division by zero"
