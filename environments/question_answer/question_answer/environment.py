"""`load_environment`: questions and answers of your own, scored by match and format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import verifiers as vf
from datasets import Dataset

from question_answer.data import load_pairs
from question_answer.matching import MATCHES, Match, answers_match, parse_number
from question_answer.parser import StrictXMLParser

THINK_PROMPT = (
    "Answer the question. First reason step by step inside <think> and </think>, then give only the final "
    "answer inside <answer> and </answer>. Write nothing outside the tags."
)
ANSWER_PROMPT = (
    "Answer the question. Give only the final answer inside <answer> and </answer>. Write nothing else."
)


def load_environment(
    dataset: str | Path | Dataset,
    split: str = "train",
    name: str | None = None,
    question_field: str = "question",
    answer_field: str = "answer",
    answer_regex: str | None = None,
    eval_dataset: str | Path | Dataset | None = None,
    eval_split: str | None = None,
    eval_fraction: float = 0.1,
    num_train_examples: int | None = None,
    num_eval_examples: int | None = None,
    seed: int = 0,
    system_prompt: str | None = "default",
    few_shot: Sequence[Mapping[str, str]] | None = None,
    think: bool = True,
    match: Match = "normalized",
    format_weight: float = 0.2,
) -> vf.SingleTurnEnv:
    r"""A `vf.SingleTurnEnv` over questions and answers; reward = match + `format_weight` x format.

    The eval rows are `eval_dataset`/`eval_split` when one is given; otherwise they are held out of the
    dataset: shuffled with `seed`, the first rows are eval, and training never sees them.

    Args:
        dataset: a .jsonl, .json, .csv, .tsv or .parquet file, a Hugging Face id or folder, or a `Dataset`.
        split: its split; files have none.
        name: its configuration, for Hugging Face datasets.
        question_field: the column with the questions.
        answer_field: the column with the answers.
        answer_regex: keep only what its first group finds in each answer, such as `####\s*(.+)` for GSM8K.
        eval_dataset: where eval rows come from; by default `dataset`.
        eval_split: their split; by default `split`.
        eval_fraction: share held out for eval when it has no source of its own; 0 for none.
        num_train_examples: use only so many for training.
        num_eval_examples: use (or hold out) exactly so many for eval.
        seed: seed of the shuffle.
        system_prompt: text, None, or "default", which asks for the tags.
        few_shot: message dicts put between system prompt and question.
        think: whether `<think>` is to come before `<answer>`.
        match: "exact", "normalized" or "numeric"; see `question_answer.answers_match`.
        format_weight: weight of the format reward: each tag once, in order, nothing outside.

    Raises:
        ValueError: the data cannot be read or lacks a column (with near names), or an argument is impossible.
    """
    fields = (name, question_field, answer_field, answer_regex)
    train = load_pairs(dataset, split, *fields)
    if eval_dataset is None and eval_split is None:
        train, held_out = _hold_out(train, eval_fraction, num_eval_examples, seed)
    else:
        held_out = load_pairs(dataset if eval_dataset is None else eval_dataset, eval_split or split, *fields)
        held_out = _first(held_out, num_eval_examples, "num_eval_examples")
    train = _first(train, num_train_examples, "num_train_examples")
    _check_match(match, train, held_out)
    parser = StrictXMLParser(["think", "answer"] if think else ["answer"])
    if system_prompt == "default":
        system_prompt = THINK_PROMPT if think else ANSWER_PROMPT
    return vf.SingleTurnEnv(
        dataset=train,
        eval_dataset=held_out,
        system_prompt=(THINK_PROMPT if think else ANSWER_PROMPT)
        if system_prompt == "default"
        else system_prompt,
        few_shot=[dict(message) for message in few_shot] if few_shot else None,
        parser=parser,
        rubric=_rubric(parser, match, format_weight),
    )


def _rubric(parser: StrictXMLParser, match: Match, format_weight: float) -> vf.Rubric:
    def correct_answer(completion: Any, answer: str) -> float:
        """1.0 when the last closed answer is the right one."""
        given = parser.parse_answer(completion)
        return float(given is not None and answers_match(given, answer, match))

    return vf.Rubric(
        funcs=[correct_answer, parser.get_format_reward_func()], weights=[1.0, format_weight], parser=parser
    )


def _hold_out(data: Dataset, fraction: float, count: int | None, seed: int) -> tuple[Dataset, Dataset | None]:
    """Split into train and eval; the eval rows depend on the data, the count and the seed alone."""
    if not 0 <= fraction < 1:
        raise ValueError(f"eval_fraction must be at least 0 and below 1, not {fraction}.")
    if count is None:
        count = max(1, round(fraction * len(data))) if fraction else 0
    if not 0 <= count < len(data):
        raise ValueError(
            f"cannot hold {count} of {len(data)} rows out for eval and still train; "
            "lower num_eval_examples or name an eval_dataset or eval_split."
        )
    shuffled = data.shuffle(seed=seed)
    held_out = shuffled.select(range(count)) if count else None
    return shuffled.select(range(count, len(data))), held_out


def _first(data: Dataset, count: int | None, argument: str) -> Dataset:
    if count is None:
        return data
    if not 1 <= count <= len(data):
        raise ValueError(f"{argument}={count}, but there are {len(data)} rows; choose 1 to {len(data)}.")
    return data.select(range(count))


def _check_match(match: str, *parts: Dataset | None) -> None:
    if match not in MATCHES:
        raise ValueError(f"unknown match '{match}'; choose one of {', '.join(MATCHES)}.")
    if match != "numeric":
        return
    for part in parts:
        for answer in part["answer"] if part is not None else ():
            if parse_number(answer) is None:
                raise ValueError(
                    f"match='numeric', but the answer {answer[:60]!r} is not a number; "
                    "use match='normalized' or pick the number out with answer_regex."
                )
