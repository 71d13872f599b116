"""System prompts seen in training, so that the model knows the ones that environments really send."""

from __future__ import annotations

from random import Random

from reasoning_gym.utils import SYSTEM_PROMPTS

DEFAULT_SYSTEM_PROMPT: str = SYSTEM_PROMPTS["default"]

THINK_ANSWER_PROMPTS: tuple[str, ...] = (
    "Think step by step inside <think>...</think>, then give the answer inside <answer>...</answer>.",
    "Think step by step inside <think>...</think> tags, then give your final answer inside "
    "<answer>...</answer> tags.",
    "Respond in the following format:\n<think>\n...\n</think>\n<answer>\n...\n</answer>",
    "Think step by step, then give your final answer inside <answer>...</answer> tags.",
    "You are a helpful assistant. Solve the problem step by step.\n"
    "Write your reasoning between <think> and </think>, and only the final answer between "
    "<answer> and </answer>.",
    "First reason in <think> tags, then answer with a single number in <answer> tags.",
)

SHORT_PROMPTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Answer the question.",
    "Solve the following math problem.",
    "Give your final answer inside <answer>...</answer> tags.",
)

_SENTENCES: tuple[str, ...] = (
    "You are a careful assistant.",
    "You solve arithmetic problems.",
    "Think before you answer.",
    "Show your work.",
    "Reason step by step.",
    "Keep your reasoning short.",
    "Put your reasoning inside <think> </think> tags.",
    "Put the final answer inside <answer> </answer> tags.",
    "Answer with a number only.",
    "Do not write anything after the answer.",
    "Please answer the following question.",
)


def _random_prompt(rng: Random) -> str:
    sentences = rng.sample(_SENTENCES, rng.randint(1, 5))
    return rng.choice((" ", "\n")).join(sentences)


def sample_system_prompt(rng: Random) -> str | None:
    """A system prompt, or None for a conversation without one.

    Half are Reasoning Gym's default, the one `vf.ReasoningGymEnv` sends; the rest teach the model
    not to depend on the wording.
    """
    kind = rng.random()
    if kind < 0.5:
        return DEFAULT_SYSTEM_PROMPT
    if kind < 0.6:
        return None
    if kind < 0.8:
        return rng.choice(THINK_ANSWER_PROMPTS)
    if kind < 0.9:
        return rng.choice((*SHORT_PROMPTS, SYSTEM_PROMPTS["simple"], SYSTEM_PROMPTS["direct"]))
    return _random_prompt(rng)
