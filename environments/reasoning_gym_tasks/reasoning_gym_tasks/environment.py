"""`LazyReasoningGymEnv`: `vf.ReasoningGymEnv` without its waiting and its free rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import verifiers as vf
from datasets import Dataset
from reasoning_gym.utils import SYSTEM_PROMPTS

from reasoning_gym_tasks.entries import decode_entry, difficulty_of, encode_entry
from reasoning_gym_tasks.mixture import MAX_ROWS, Split, TaskMixture, split_seed
from reasoning_gym_tasks.parser import StrictXMLParser
from reasoning_gym_tasks.scoring import score_answer
from reasoning_gym_tasks.tasks import GymSpec, parse_gym

Row = dict[str, Any]


class LazyReasoningGymEnv(vf.ReasoningGymEnv):
    """Any Reasoning Gym task or weighted mix; rows are made when they are asked for.

    What it does differently from `vf.ReasoningGymEnv`:
    an entry costs nothing until its row is used, so slow tasks start at once and a million rows fit; an
    answer without closed tags scores 0; scoring runs in a thread, beside the event loop; train and eval come
    from disjoint seeds and neither changes with the size of the other; a scorer that fails raises
    `UnscorableError` instead of scoring 0; single tasks take a config; every row carries its entry.

    Rows: `row(index, split)` and `num_rows(split)`. `get_dataset()` and `get_eval_dataset()` build the whole
    split on the first call. A row has `prompt` (list of message dicts), `question`, `answer` (the task's own
    answer as text, "" where it has none), `example_id` and `info`: `source_dataset` (the task's name),
    `split`, `index`, `difficulty` (JSON) and `entry` (JSON of answer and metadata, what scoring uses).

    Args:
        gym: a task name, or a list of names and `{name, weight, config}` mappings.
        config: the task's own settings, when `gym` is a single name.
        num_train_examples: size of the train split; up to 2**30.
        num_eval_examples: size of the eval split; 0 for none.
        seed: seed of the train split.
        eval_seed: seed of the eval split; by default derived from `seed`. Never the same entries as train.
        system_prompt: text, None, or the name of one of Reasoning Gym's: "default" (which is "DeepSeekZero"
            when `parser_fields` includes "think"), "simple", "direct", "chain_of_draft", "DeepSeekZero".
        few_shot: message dicts put between system prompt and question.
        parser: any `vf.Parser`; by default `StrictXMLParser(parser_fields)`.
        parser_fields: tags, in order.
        format_weight: weight of the strict format reward; at 0 it is a metric only.
        cache_size: how many generated entries are kept per split.

    Raises:
        ValueError: an unknown task or setting (with near names), a bad weight or size.
    """

    def __init__(
        self,
        gym: GymSpec = "leg_counting",
        config: Mapping[str, Any] | None = None,
        num_train_examples: int = 1000,
        num_eval_examples: int = 100,
        seed: int = 0,
        eval_seed: int | None = None,
        system_prompt: str | None = "default",
        few_shot: Sequence[Mapping[str, str]] | None = None,
        parser: vf.Parser | None = None,
        parser_fields: Sequence[str] = ("answer",),
        format_weight: float = 0.0,
        cache_size: int = 4096,
    ) -> None:
        specs = parse_gym(gym, config)
        _check_sizes(num_train_examples, num_eval_examples, cache_size)
        self.gym, self.seed, self.eval_seed = gym, seed, seed if eval_seed is None else eval_seed
        self.num_train_examples, self.num_eval_examples = num_train_examples, num_eval_examples
        self.rg_dataset = TaskMixture(specs, split_seed(seed, "train"), num_train_examples, cache_size)
        self.rg_eval_dataset = TaskMixture(
            specs, split_seed(self.eval_seed, "eval"), num_eval_examples, cache_size
        )
        self._preamble = _preamble(system_prompt, parser_fields, few_shot)
        # One thread: scoring is pure Python, so more of them would only take turns with the event loop.
        self._scoring_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reasoning-gym-scorer")
        parser = parser or StrictXMLParser(parser_fields)
        rubric = vf.Rubric(parser=parser)
        rubric.add_reward_func(self.check_answer_reward_func)
        rubric.add_reward_func(parser.get_format_reward_func(), weight=format_weight)
        # Past vf.ReasoningGymEnv's own constructor, which generates every entry.
        super(vf.ReasoningGymEnv, self).__init__(
            dataset=lambda: self._build("train"),
            eval_dataset=(lambda: self._build("eval")) if num_eval_examples else None,
            parser=parser,
            rubric=rubric,
            system_prompt=_resolve_system_prompt(system_prompt, parser_fields),
        )

    def num_rows(self, split: Split = "train") -> int:
        """Number of rows of the split."""
        return len(self._mixture(split))

    def row(self, index: int, split: Split = "train") -> Row:
        """Row `index` of the split, generated now unless it was used lately. Safe to call from any thread.

        Raises:
            IndexError: no such row.
        """
        mixture = self._mixture(split)
        entry = mixture[index]
        answer = entry["answer"]
        return {
            "prompt": [*self._preamble, {"role": "user", "content": entry["question"]}],
            "question": entry["question"],
            "answer": "" if answer is None else str(answer),
            "example_id": index,
            "info": {
                "source_dataset": mixture.spec_at(index).name,
                "split": split,
                "index": index,
                "difficulty": difficulty_of(entry),
                "entry": encode_entry(entry),
            },
        }

    async def check_answer_reward_func(
        self, completion: Any, info: Mapping[str, Any], question: str
    ) -> float:
        """Reasoning Gym's score of the parsed answer, computed beside the event loop.

        Raises:
            UnscorableError: the scorer failed for a reason other than the answer.
        """
        answer = self.parser.parse_answer(completion)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._scoring_thread, self._score, answer, info, question)

    def _score(self, answer: str | None, info: Mapping[str, Any], question: str) -> float:
        if answer is None:
            return 0.0
        entry = decode_entry(info["entry"], question)
        dataset = self._mixture(info["split"]).scorer_at(info["index"])
        return score_answer(dataset, info["source_dataset"], answer, entry)

    def _mixture(self, split: Split) -> TaskMixture:
        if split not in ("train", "eval"):
            raise ValueError(f"split is 'train' or 'eval', not {split!r}.")
        return self.rg_dataset if split == "train" else self.rg_eval_dataset

    def _build(self, split: Split) -> Dataset:
        return Dataset.from_list([self.row(index, split) for index in range(self.num_rows(split))])


def load_environment(
    gym: GymSpec = "leg_counting",
    config: Mapping[str, Any] | None = None,
    num_train_examples: int = 1000,
    num_eval_examples: int = 100,
    seed: int = 0,
    eval_seed: int | None = None,
    system_prompt: str | None = "default",
    few_shot: Sequence[Mapping[str, str]] | None = None,
    parser_fields: Sequence[str] = ("answer",),
    format_weight: float = 0.0,
    cache_size: int = 4096,
) -> LazyReasoningGymEnv:
    """What `vf.load_environment` and `vf-eval` call; the arguments are `LazyReasoningGymEnv`'s."""
    return LazyReasoningGymEnv(
        gym=gym,
        config=config,
        num_train_examples=num_train_examples,
        num_eval_examples=num_eval_examples,
        seed=seed,
        eval_seed=eval_seed,
        system_prompt=system_prompt,
        few_shot=few_shot,
        parser_fields=parser_fields,
        format_weight=format_weight,
        cache_size=cache_size,
    )


def _check_sizes(num_train: int, num_eval: int, cache_size: int) -> None:
    if not 1 <= num_train <= MAX_ROWS:
        raise ValueError(f"num_train_examples must be between 1 and {MAX_ROWS}, not {num_train}.")
    if not 0 <= num_eval <= MAX_ROWS:
        raise ValueError(f"num_eval_examples must be between 0 and {MAX_ROWS}, not {num_eval}.")
    if cache_size < 1:
        raise ValueError(f"cache_size must be at least 1, not {cache_size}.")


def _resolve_system_prompt(system_prompt: str | None, parser_fields: Sequence[str]) -> str | None:
    if system_prompt == "default" and "think" in parser_fields:
        system_prompt = "DeepSeekZero"
    return None if system_prompt is None else SYSTEM_PROMPTS.get(system_prompt, system_prompt)


def _preamble(
    system_prompt: str | None, parser_fields: Sequence[str], few_shot: Sequence[Mapping[str, str]] | None
) -> list[dict[str, str]]:
    """The messages before the question."""
    text = _resolve_system_prompt(system_prompt, parser_fields)
    system = [{"role": "system", "content": text}] if text else []
    return system + [dict(message) for message in few_shot or ()]
