"""Which datasets, with which weights, splits and columns: reading and checking what the user asked for."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset

BUILTIN = "builtin"


@dataclass(frozen=True, slots=True)
class Fields:
    """Which column holds what."""

    question_field: str = "question"
    answer_field: str = "answer"

    def given(self) -> Iterator[tuple[str, str]]:
        """The columns that must be there, with the name of the setting that says so."""
        for name in ("question_field", "answer_field"):
            yield name, getattr(self, name)


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One member of a mix.

    Attributes:
        dataset: a preset ("big-math", "gsm8k", "math", "builtin"), file, Hugging Face id, folder, `Dataset`.
        config: its configuration on the hub.
        split: where training rows come from.
        eval_split: where eval rows come from; None to hold rows out of `split`.
        weight: its share of the mix, beside the others'.
        fields: which column holds what.
        answer_regex: keep only what its first group finds in each answer.
        tasks: for "builtin": task names, or a mapping from names to settings; None for all.
    """

    dataset: str | Path | Dataset
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    weight: float = 1.0
    fields: Fields = field(default_factory=Fields)
    answer_regex: str | None = None
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None

    @property
    def label(self) -> str:
        """What messages and the column `source` call it."""
        return "the dataset" if isinstance(self.dataset, Dataset) else str(self.dataset)


DatasetSpec: TypeAlias = str | Path | Dataset | Mapping[str, Any] | Sequence[Any]

_BOXED = r"(?s)(\\boxed\s*\{.*\})"
PRESETS: dict[str, SourceSpec] = {
    BUILTIN: SourceSpec(BUILTIN),
    "big-math": SourceSpec("AmirMohseni/Big-Math-RL-filtered", fields=Fields(answer_field="answer_correct")),
    "gsm8k": SourceSpec("openai/gsm8k", config="main", eval_split="test", answer_regex=r"####\s*(.+)"),
    "math": SourceSpec(
        "DigitalLearningGmbH/MATH-lighteval",
        eval_split="test",
        fields=Fields(question_field="problem", answer_field="solution"),
        answer_regex=_BOXED,
    ),
}


def parse_dataset(dataset: DatasetSpec, defaults: Mapping[str, Any]) -> tuple[SourceSpec, ...]:
    """The checked members of a mix.

    Args:
        dataset: one source, or a list of sources and mappings `{dataset, config, split, eval_split, weight,
            field_mapping, answer_regex, tasks}`.
        defaults: the environment's arguments of those names; None where not given. They apply to every
            member that does not say otherwise.

    Raises:
        ValueError: an unknown key, a bad weight, or no source at all.
    """
    members = list(dataset) if isinstance(dataset, list | tuple) else [dataset]
    if not members:
        raise ValueError("dataset is an empty list; name at least one dataset.")
    return tuple(_member(member, defaults) for member in members)


def _member(member: Any, defaults: Mapping[str, Any]) -> SourceSpec:
    said = dict(member) if isinstance(member, Mapping) else {"dataset": member}
    if "dataset" not in said:
        raise ValueError(f"each dataset is a name or {{'dataset': ..., 'weight': ...}}, not {member!r}.")
    known = [f.name for f in dataclasses.fields(SourceSpec) if f.name != "fields"] + ["field_mapping"]
    _check_keys("dataset", said, known)
    said = {**{key: value for key, value in defaults.items() if value is not None}, **said}
    base = _preset(said["dataset"])
    mapping = said.pop("field_mapping", None)
    changes = {key: value for key, value in said.items() if key != "dataset"}
    fields = base.fields if mapping is None else _fields(base.fields, mapping)
    spec = dataclasses.replace(base, **changes, fields=fields)
    _check_weight(spec)
    if spec.tasks is not None and spec.dataset != BUILTIN:
        raise ValueError(f"tasks belong to dataset='builtin', not to {spec.label}.")
    return spec


def _preset(dataset: Any) -> SourceSpec:
    """A preset by its name or by the dataset it stands for, else the plain source."""
    if not isinstance(dataset, str):
        return SourceSpec(dataset)
    by_path = {str(spec.dataset): spec for spec in PRESETS.values()}
    return PRESETS.get(dataset) or by_path.get(dataset) or SourceSpec(dataset)


def _fields(base: Fields, mapping: Mapping[str, Any]) -> Fields:
    mapping = {name: column for name, column in mapping.items() if column is not None}
    if "image_field" in mapping:
        raise ValueError(
            "image_field: these problems are asked in text only; for questions about pictures use the environment "
            "visual-tasks, which has dataset, image_field, question_field and answer_field."
        )
    _check_keys("field_mapping", mapping, [f.name for f in dataclasses.fields(Fields)])
    return dataclasses.replace(base, **mapping)


def _check_keys(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=2, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"it may have {', '.join(known)}."
            )
            raise ValueError(f"unknown key '{key}' in {what}; {hint}")


def _check_weight(spec: SourceSpec) -> None:
    weight = spec.weight
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"the weight of {spec.label} must be a number above 0, not {weight!r}.")
