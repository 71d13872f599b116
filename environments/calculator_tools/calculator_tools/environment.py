"""`load_environment`: questions, a tool, and a reward for the answer. A template for a tool environment of your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import verifiers as vf

from calculator_tools.calculator import calculate, evaluate
from calculator_tools.problems import OPERATORS, make_problems

SYSTEM_PROMPT = "Use the calculator. Then give the number inside <answer> and </answer>."


class AnswerParser(vf.XMLParser):
    """The one `<answer>` of the last message; two answers are none."""

    def parse_answer(self, completion: Any) -> str | None:
        """The text inside the tags, or None."""
        messages = [] if isinstance(completion, str) else self.get_assistant_messages(completion)
        text = (
            completion if isinstance(completion, str) else str(messages[-1].content or "") if messages else ""
        )
        opened, closed = text.count("<answer>"), text.count("</answer>")
        if (opened, closed) != (1, 1):
            return None
        return text.partition("<answer>")[2].partition("</answer>")[0].strip() or None


def load_environment(
    num_train_examples: int = 2000,
    num_eval_examples: int = 200,
    seed: int = 0,
    num_terms: int = 2,
    max_digits: int = 2,
    operators: Sequence[str] = OPERATORS,
    max_turns: int = 4,
    system_prompt: str | None = SYSTEM_PROMPT,
) -> vf.ToolEnv:
    """A `vf.ToolEnv`: arithmetic with the tool `calculate`; reward 1 for the right number, else 0.

    The model's turns alternate with the calculator's results until it answers without a call, or `max_turns`
    is reached. Metrics: `total_tool_calls`, `calculate_calls`, `num_turns` (from Verifiers).

    Args:
        num_train_examples: problems to train on.
        num_eval_examples: problems to evaluate on, others than those; 0 for none.
        seed: of the problems.
        num_terms: numbers in a problem.
        max_digits: digits of a number.
        operators: out of `+ - *`.
        max_turns: turns of the model.
        system_prompt: text or None; the chat template adds the tool's description.

    Raises:
        ValueError: a setting that allows too few problems.
    """
    train, held_out = make_problems(
        num_train_examples, num_eval_examples, seed, num_terms, max_digits, operators
    )
    parser = AnswerParser(["answer"])
    return vf.ToolEnv(
        dataset=train,
        eval_dataset=held_out,
        tools=[calculate],
        max_turns=max_turns,
        system_prompt=system_prompt,
        parser=parser,
        rubric=vf.Rubric([correct_answer], parser=parser),
    )


def correct_answer(completion: Any, answer: str, parser: vf.Parser) -> float:
    """1.0 when the number between the answer tags of the last message is the right one."""
    given = parser.parse_answer(completion)
    if given is None:
        return 0.0
    try:
        # A number, not a sum that comes to it: an operator between digits would be work left undone.
        value = evaluate(given) if given.lstrip("-").replace(".", "", 1).isdigit() else None
    except ValueError:
        return 0.0
    return float(value == evaluate(answer))
