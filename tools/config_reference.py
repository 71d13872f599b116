"""Writes docs/configuration_reference.md from the schema, so that it cannot say anything else than the program.

python tools/config_reference.py          write the file
python tools/config_reference.py --check  only tell whether it is up to date (exit code 1 if not)
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel
from transformers import TrainingArguments

from grpo_gym.config import schema
from grpo_gym.training.config import GRPOConfig

TARGET = Path(__file__).parents[1] / "docs" / "configuration_reference.md"
HEADER = """\
# Configuration reference

Every key of an experiment file. Made by `python tools/config_reference.py`; a test fails when it is out of date.
How files are put together: [configuration.md](configuration.md).

"""
SECTIONS = (
    ("model", schema.ModelSection),
    ("data", schema.DataSection),
    ("data.tasks.NAME", schema.TaskEntry),
    ("data.datasets[]", schema.DatasetEntry),
    ("data.field_mapping", schema.FieldMapping),
    ("rewards[]", schema.RewardSpec),
    ("eval", schema.EvalSection),
    ("logging", schema.LoggingSection),
    ("launch", schema.LaunchSection),
)


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    text = reference()
    if not parser.parse_args().check:
        TARGET.write_text(text)
        return 0
    if TARGET.read_text() == text:
        return 0
    print("docs/configuration_reference.md is out of date: python tools/config_reference.py", file=sys.stderr)
    return 1


def reference() -> str:
    """The whole document."""
    return HEADER + "\n".join([*_sections(), *_training()])


def _sections() -> Iterator[str]:
    for title, model in SECTIONS:
        yield f"## `{title}`\n"
        yield f"{_summary(model)}\n"
        if model.model_fields:
            yield from _table(_rows(model))


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    hints = get_type_hints(model)
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        yield name, _type(hints[name]), default, field.description or ""


def _training() -> Iterator[str]:
    """`training`: what GRPO adds, then what transformers has."""
    inherited = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    own = [field for field in dataclasses.fields(GRPOConfig) if field.init and _is_own(field, inherited)]
    names = {field.name for field in own}
    yield "## `training`\n"
    yield "What GRPO adds to transformers' `TrainingArguments`, and the defaults it changes.\n"
    yield from _table(_config_rows(own))
    yield "## `training`: transformers' own\n"
    yield "With the meaning and the default they have there.\n"
    yield from _table(_config_rows([f for f in inherited.values() if f.init and f.name not in names]))


def _is_own(field: Any, inherited: dict[str, Any]) -> bool:
    return field.name not in inherited or field.metadata != inherited[field.name].metadata


def _config_rows(fields: list[Any]) -> Iterator[tuple[str, str, str, str]]:
    hints = get_type_hints(GRPOConfig)
    for field in fields:
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield field.name, _type(hints[field.name]), _value(default), field.metadata.get("help", "")


def _table(rows: Iterator[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| key | type | default | what it is |\n|---|---|---|---|"
    for name, kind, default, text in rows:
        yield f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(_first_sentence(text))} |"
    yield ""


def _first_sentence(text: str) -> str:
    """Transformers explains at length; a line is enough to find a setting."""
    words = " ".join(text.split())
    return words if len(words) < 240 else words[: words.find(". ") + 1] or f"{words[:237]}..."


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    for long in (
        "typing.",
        "grpo_gym.config.schema.",
        "transformers.trainer_utils.",
        "transformers.training_args.",
    ):
        text = text.replace(long, "")
    return text.removeprefix("<enum '").removesuffix("'>").replace("NoneType", "null").replace("None", "null")


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if value is None:
        return "null"
    return f"`{value.value if hasattr(value, 'value') else value!s}`" if value != "" else "`''`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
