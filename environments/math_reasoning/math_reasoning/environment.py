"""`load_environment`: mathematical problems, answered in tags, scored by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import verifiers as vf
from datasets import config as datasets_config

from math_reasoning.mixture import Split, build_splits
from math_reasoning.parser import StrictXMLParser
from math_reasoning.pool import GraderPool
from math_reasoning.sources import UnreachableError
from math_reasoning.specs import BUILTIN, PRESETS, DatasetSpec, parse_dataset

logger = logging.getLogger(__name__)

DEFAULT_DATASET = str(PRESETS["big-math"].dataset)
THINK_PROMPT = (
    "Solve the problem. First reason step by step inside <think> and </think>, then give only the final "
    "answer inside <answer> and </answer>, as a number or in LaTeX. Write nothing outside the tags.\n"
    "Example: <think>Half of 7 is 7/2.</think><answer>\\frac{7}{2}</answer>"
)
ANSWER_PROMPT = (
    "Solve the problem. Give only the final answer inside <answer> and </answer>, as a number or in LaTeX. "
    "Write nothing else."
)


class MathRubric(vf.Rubric):
    """`accuracy_reward` in worker processes, and the strict `format_reward`."""

    def __init__(self, parser: StrictXMLParser, pool: GraderPool, format_weight: float) -> None:
        self.pool = pool
        super().__init__(
            funcs=[self.accuracy_reward, parser.get_format_reward_func()],
            weights=[1.0, format_weight],
            parser=parser,
        )

    async def accuracy_reward(self, completion: Any, answer: str, question: str = "") -> float:
        """1.0 when the one answer after the thinking is the reference answer; else 0.0.

        Raises:
            UnscorableError: grading took longer than the deadline, or its process died.
        """
        given = self.parser.parse_answer(completion)
        return float(await self.pool.grade(answer, given, question)) if given else 0.0

    @vf.teardown
    async def stop_graders(self) -> None:
        """End the worker processes."""
        self.pool.close()


def load_environment(
    dataset: DatasetSpec | None = None,
    split: str | None = None,
    config: str | None = None,
    eval_split: str | None = None,
    field_mapping: Mapping[str, str | None] | None = None,
    answer_regex: str | None = None,
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    num_train_examples: int | None = None,
    num_eval_examples: int | None = None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    system_prompt: str | None = "default",
    few_shot: Sequence[Mapping[str, str]] | None = None,
    think: bool = True,
    format_weight: float = 0.2,
    deadline: float = 5.0,
    num_workers: int = 4,
) -> vf.SingleTurnEnv:
    r"""A `vf.SingleTurnEnv` over mathematical problems; reward = accuracy + `format_weight` x format.

    Rows have `question`, `answer` and `source` (where the row is from).

    Args:
        dataset: a preset ("big-math", "gsm8k", "math", or "builtin": made on the spot, no network), a
            .jsonl, .json, .csv, .tsv or .parquet file, a Hugging Face id or folder, a `Dataset`, or a list
            of these and of mappings `{dataset, weight, config, split, eval_split, field_mapping,
            answer_regex, tasks}`. What is not said there comes from the arguments here. None: Big-Math; with
            HF_HUB_OFFLINE set and Big-Math not in the cache, "builtin", with a warning.
        split: where training rows come from; "train" unless a preset says otherwise.
        config: configuration of a Hugging Face dataset.
        eval_split: where eval rows come from; by default a part of `split` is held out.
        field_mapping: `question_field` and `answer_field`, the columns to read.
        answer_regex: keep only what its first group finds in each answer, such as `####\s*(.+)`.
        tasks: for "builtin": names, or a mapping from names to Reasoning Gym settings.
        num_train_examples: rows to train on; by default all, or as many as a mix allows without repeats.
        num_eval_examples: rows to evaluate on; 0 for none.
        eval_fraction: share held out for eval (500 rows at most) where there is no eval split.
        seed: of the problems made, the hold-out and the order of a mix.
        system_prompt: text, None, or "default", which asks for the tags.
        few_shot: message dicts put between system prompt and question.
        think: whether `<think>` is to come before `<answer>`; False for models whose chat template opens it.
        format_weight: weight of the strict format reward; at 0 it is a metric only.
        deadline: seconds for grading one answer.
        num_workers: grading processes, started when needed.

    Raises:
        ValueError: the data cannot be read or lacks a column (with near names), or an argument is impossible.
    """
    given: dict[str, Any] = {
        "split": split,
        "config": config,
        "eval_split": eval_split,
        "field_mapping": field_mapping,
    }
    given |= {"answer_regex": answer_regex, "tasks": tasks}
    train, held_out = _load(dataset, given, num_train_examples, num_eval_examples, eval_fraction, seed)
    parser = StrictXMLParser(["think", "answer"] if think else ["answer"])
    if system_prompt == "default":
        system_prompt = THINK_PROMPT if think else ANSWER_PROMPT
    return vf.SingleTurnEnv(
        dataset=train,
        eval_dataset=held_out,
        system_prompt=system_prompt,
        few_shot=[dict(message) for message in few_shot] if few_shot else None,
        parser=parser,
        rubric=MathRubric(parser, GraderPool(num_workers, deadline), format_weight),
    )


def _load(dataset: DatasetSpec | None, given: Mapping[str, Any], *sizes_and_seed: Any) -> Split:
    """The rows of `dataset`; without one, those of the default, or of the offline default where that is wanted."""
    specs = parse_dataset(DEFAULT_DATASET if dataset is None else dataset, given)
    try:
        return build_splits(specs, *sizes_and_seed)
    except UnreachableError:
        if dataset is not None or not datasets_config.HF_HUB_OFFLINE:
            raise
    logger.warning(
        "HF_HUB_OFFLINE is set and %s is not in the cache: the problems are made here (dataset=%r).",
        DEFAULT_DATASET,
        BUILTIN,
    )
    return build_splits(parse_dataset(BUILTIN, {}), *sizes_and_seed)
