"""`load_environment`: one picture, one question, one right answer in `<answer>` tags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import verifiers as vf
from datasets import Dataset

from visual_tasks.answers import answers_match, format_reward, parse_answer
from visual_tasks.pictures import image_message
from visual_tasks.problems import DRAWN_TASKS, DrawnProblems, OwnProblems, Problems, Split, load_own
from visual_tasks.shapes import COLOURS, MAX_SHAPES

Row = dict[str, Any]
THINK_PROMPT = (
    "Answer the question about the picture. First reason inside <think> and </think>, then give only the final "
    "answer inside <answer> and </answer>. Write nothing outside the tags."
)
ANSWER_PROMPT = (
    "Answer the question about the picture. Give only the final answer inside <answer> and </answer>. "
    "Write nothing else."
)


class VisualTasksEnv(vf.SingleTurnEnv):
    """A single-turn environment whose prompts have pictures.

    Rows are made when they are asked for: `row(index, split)` and `num_rows(split)`. `get_dataset()` and
    `get_eval_dataset()` build the whole split on the first call. A row has `prompt` (messages with `image_url`
    data URIs), `question`, `answer`, `example_id` and `info`.

    Args:
        train: the problems trained on.
        held_out: the problems evaluated on; None for none.
        task: name of the task in logs.
        system_prompt: text, None, or "default", which asks for the tags.
        think: whether `<think>` is to come before `<answer>`.
        format_weight: weight of the format reward: each tag once, in order, nothing outside.
    """

    def __init__(
        self,
        train: Problems,
        held_out: Problems | None,
        task: str,
        system_prompt: str | None = "default",
        think: bool = False,
        format_weight: float = 0.0,
    ) -> None:
        self._problems = {"train": train, "eval": held_out}
        self._task = task
        if system_prompt == "default":
            system_prompt = THINK_PROMPT if think else ANSWER_PROMPT
        self._preamble = [{"role": "system", "content": system_prompt}] if system_prompt else []
        tags = ["think", "answer"] if think else ["answer"]
        parser = vf.XMLParser(tags)

        def correct_answer(completion: Any, answer: str) -> float:
            """1.0 when the last closed answer is the right one."""
            given = parse_answer(completion)
            return float(given is not None and answers_match(given, answer))

        def well_formed(completion: Any) -> float:
            """1.0 when each tag stands once, in order, with nothing outside."""
            return format_reward(completion, tags)

        super().__init__(
            dataset=lambda: self._build("train"),
            eval_dataset=(lambda: self._build("eval")) if held_out is not None else None,
            parser=parser,
            rubric=vf.Rubric(
                funcs=[correct_answer, well_formed], weights=[1.0, format_weight], parser=parser
            ),
        )

    def num_rows(self, split: Split = "train") -> int:
        """Number of rows of the split."""
        problems = self._problems[split]
        return 0 if problems is None else len(problems)

    def row(self, index: int, split: Split = "train") -> Row:
        """Row `index` of the split, made now.

        Raises:
            IndexError: no such row.
            ValueError: its picture cannot be read.
        """
        problems = self._problems[split]
        if problems is None:
            raise IndexError(f"row {index} of 0")
        problem = problems[index]
        return {
            "prompt": [*self._preamble, image_message(problem.question, [problem.picture])],
            "question": problem.question,
            "answer": problem.answer,
            "example_id": index,
            "info": {"source_dataset": self._task, "split": split, "index": index},
        }

    def _build(self, split: Split) -> Dataset:
        # A column of messages has one type: with parts everywhere, text alone is a part, too.
        return Dataset.from_list([_same_types(self.row(i, split)) for i in range(self.num_rows(split))])


def load_environment(
    task: str = "colour",
    num_train_examples: int | None = None,
    num_eval_examples: int = 100,
    seed: int = 0,
    colours: Sequence[str] = ("red", "green", "blue"),
    image_size: int = 112,
    max_shapes: int = 6,
    gym: Any = None,
    dataset: str | Path | Dataset | None = None,
    split: str = "train",
    name: str | None = None,
    eval_dataset: str | Path | Dataset | None = None,
    eval_split: str | None = None,
    image_field: str = "image",
    question_field: str = "question",
    answer_field: str = "answer",
    system_prompt: str | None = "default",
    think: bool = False,
    format_weight: float = 0.0,
    **gym_arguments: Any,
) -> vf.SingleTurnEnv:
    """Questions about pictures: drawn shapes, Reasoning Gym tasks as pictures (`gym`), or your own (`dataset`).

    Args:
        task: "colour" or "count", of drawn shapes.
        num_train_examples: how many; 1000 drawn ones by default, all of a dataset.
        num_eval_examples: how many are held out.
        seed: of the problems; for a dataset, of the shuffle that holds rows out.
        colours: of drawn shapes; names in `visual_tasks.shapes.COLOURS`.
        image_size: width and height of drawn pictures in pixels.
        max_shapes: most shapes of a "count" picture, at most 9.
        gym: a Reasoning Gym task, or a mix, as for `reasoning_gym_tasks`; its questions become pictures of text.
        dataset: your own pictures and questions; see `image_field`.
        split: its split; files have none.
        name: its configuration.
        eval_dataset: where eval rows come from; by default they are held out of `dataset`.
        eval_split: their split.
        image_field: column with pictures, paths, bytes or data URIs.
        question_field: column with questions.
        answer_field: column with answers.
        system_prompt: text, None, or "default", which asks for the tags.
        think: whether `<think>` is to come before `<answer>`.
        format_weight: weight of the format reward.
        **gym_arguments: for `gym`: `config`, `eval_seed`, ... of `reasoning_gym_tasks`.

    Raises:
        ValueError: an argument is impossible, or the data cannot be read.
    """
    common: dict[str, Any] = {"system_prompt": system_prompt, "think": think, "format_weight": format_weight}
    if gym is not None and dataset is not None:
        raise ValueError("gym and dataset are both set; keep one.")
    if gym is not None:
        from visual_tasks.gym import rendered_gym

        counts = {"num_train_examples": num_train_examples or 1000, "num_eval_examples": num_eval_examples}
        return rendered_gym(gym=gym, seed=seed, **counts, **common, **gym_arguments)
    if gym_arguments:
        raise ValueError(
            f"{sorted(gym_arguments)[0]} is no argument of load_environment (for gym tasks only?)."
        )
    if dataset is not None:
        fields = (image_field, question_field, answer_field)
        train, held_out = _own(
            dataset,
            (split, name),
            eval_dataset,
            eval_split,
            fields,
            (num_train_examples, num_eval_examples),
            seed,
        )
        return VisualTasksEnv(train, held_out, "own", **common)
    _check_drawing(task, colours, max_shapes, image_size)
    drawing = (seed, colours, image_size, max_shapes)
    return VisualTasksEnv(
        DrawnProblems(task, "train", num_train_examples or 1000, *drawing),
        DrawnProblems(task, "eval", num_eval_examples, *drawing) if num_eval_examples else None,
        f"{task}_of_shapes",
        **common,
    )


def _own(
    dataset: str | Path | Dataset,
    source: tuple[str, str | None],
    eval_dataset: str | Path | Dataset | None,
    eval_split: str | None,
    fields: tuple[str, str, str],
    counts: tuple[int | None, int],
    seed: int,
) -> tuple[OwnProblems, OwnProblems | None]:
    split, name = source
    num_train, num_eval = counts
    data, folder = load_own(dataset, split, name)
    if eval_dataset is not None or eval_split is not None:
        chosen = dataset if eval_dataset is None else eval_dataset
        held, held_folder = load_own(chosen, eval_split or split, name)
        held = held.select(range(min(num_eval, len(held))))
    else:
        if not 0 <= num_eval < len(data):
            raise ValueError(f"cannot hold {num_eval} of {len(data)} rows out; lower num_eval_examples.")
        shuffled = data.shuffle(seed=seed)
        held, held_folder = shuffled.select(range(num_eval)), folder
        data = shuffled.select(range(num_eval, len(data)))
    if num_train is not None:
        data = data.select(range(min(num_train, len(data))))
    return OwnProblems(data, fields, folder), OwnProblems(held, fields, held_folder) if len(held) else None


def _check_drawing(task: str, colours: Sequence[str], max_shapes: int, image_size: int) -> None:
    if task not in DRAWN_TASKS:
        raise ValueError(f"unknown task {task!r}; choose {' or '.join(DRAWN_TASKS)}, or set gym or dataset.")
    unknown = [colour for colour in colours if colour not in COLOURS]
    if unknown or len(colours) < 2:
        raise ValueError(f"colours={list(colours)}: choose at least two of {', '.join(COLOURS)}.")
    if not 1 <= max_shapes <= MAX_SHAPES:
        raise ValueError(f"max_shapes={max_shapes}: choose 1 to {MAX_SHAPES}.")
    if image_size < 16:
        raise ValueError(f"image_size={image_size}: use at least 16 pixels.")


def _same_types(row: Row) -> Row:
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in row["prompt"]
    ]
    return {**row, "prompt": messages}
