import asyncio
import math

import pytest
import verifiers as vf

from grpo_gym.rewards import RewardError, create_reward, reward_names


def compute(name, completion, params=None, answer="", **info):
    return create_reward(name, params).compute("", completion, answer, info)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think>\n<answer>b</answer>", 1.0),
        ("  <think>a</think><answer>b</answer>\n", 1.0),
        ("<think>a</think><answer>b</answer> done", 0.0),
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_strict_format_wants_every_tag_once_in_order_and_nothing_outside(text, score):
    assert compute("strict_format", text) == score


def test_strict_format_takes_other_tags():
    assert compute("strict_format", "<a>1</a>", {"tags": ["a"]}) == 1.0


def test_cosine_length_follows_the_formula_at_its_ends_and_in_the_middle():
    params = {"max_tokens": 100}
    right = [
        compute("cosine_length", "", params, correctness=1.0, num_completion_tokens=n) for n in (0, 50, 99)
    ]
    assert right[0] == 1.0
    assert right[1] == pytest.approx(0.75)
    assert right[2] == pytest.approx(0.5 + 0.5 * (1 + math.cos(0.99 * math.pi)) / 2)
    wrong = [compute("cosine_length", "", params, correctness=0.0, num_completion_tokens=n) for n in (0, 50)]
    assert wrong == pytest.approx([-1.0, -0.75])
    assert compute("cosine_length", "", params, correctness=1.0, num_completion_tokens=100) == -1.0


def test_repetition_penalty_is_the_share_of_repeated_ngrams():
    assert compute("repetition_penalty", "a b c d e f", {"ngram_size": 2}) == 0.0
    # a b, b a, a b, b a, a b: 2 of 5 are new.
    assert compute("repetition_penalty", "a b a b a b", {"ngram_size": 2}) == pytest.approx(-3 / 5)
    assert compute("repetition_penalty", "short", {"ngram_size": 2}) == 0.0
    halved = {"ngram_size": 1, "max_penalty": -0.5}
    assert compute("repetition_penalty", "x x x x x x", halved) == pytest.approx(-5 / 12)


@pytest.mark.parametrize(("tokens", "score"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (150, -1.0)])
def test_overlong_penalty_falls_over_the_cache(tokens, score):
    params = {"max_tokens": 100, "cache_tokens": 20}
    assert compute("overlong_penalty", "", params, num_completion_tokens=tokens) == score


def test_length_rewards_refuse_to_guess_the_number_of_tokens():
    with pytest.raises(RewardError, match="token ids"):
        compute("overlong_penalty", "some words", {"max_tokens": 10, "cache_tokens": 5})


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("<answer>0.5</answer>", r"\frac{1}{2}", 1.0),
        ("<answer>1/2</answer>", "0.5", 1.0),
        (r"so it is \boxed{\frac{1}{2}}", "1/2", 1.0),
        (r"<answer>x^2 + 2x + 1</answer>", "(x+1)^2", 1.0),
        ("<answer>2</answer> but first <answer>3</answer>", "3", 1.0),
        ("<answer>4</answer>", "5", 0.0),
        ("5", "5", 0.0),
        ("<answer></answer>", "5", 0.0),
    ],
)
def test_math_verify_compares_values_not_text(completion, answer, score):
    assert compute("math_verify", completion, answer=answer) == score


def test_all_are_ordinary_verifiers_reward_functions():
    rewards = [create_reward("strict_format"), create_reward("repetition_penalty")]
    rubric = vf.Rubric(funcs=rewards, weights=[1.0, 0.5])
    state = vf.State(input={"prompt": [], "answer": "", "example_id": 0})
    text = "<think>a</think><answer>b</answer>"
    state.update(prompt=[], completion=[{"role": "assistant", "content": text}], trajectory=[])
    asyncio.run(rubric.score_rollout(state))
    assert state["metrics"] == {"strict_format": 1.0, "repetition_penalty": 0.0}
    assert state["reward"] == 1.0


def test_names_of_the_built_in_rewards():
    lengths = {"cosine_length", "repetition_penalty", "overlong_penalty"}
    assert lengths | {"correctness", "strict_format", "math_verify"} <= set(reward_names())
