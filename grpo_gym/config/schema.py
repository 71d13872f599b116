"""What an experiment may say. The sections are pydantic models; `training` is made from `GRPOConfig`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)

from grpo_gym.config.errors import ConfigError, KeyPath, Origin, Origins


class Section(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelSection(Section):
    """Which model is trained, and how much of it. Names are TRL's."""

    model_name_or_path: str | None = Field(
        default=None, description="Name, folder, or 'tiny'. None: see default_model()."
    )
    model_revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(default=False, description="Run model code that comes with the weights.")
    use_peft: bool = Field(default=False, description="Train LoRA adapters instead of all weights.")
    lora_r: int = Field(default=16, ge=1, description="Rank of the adapters.")
    lora_alpha: int = Field(
        default=32, description="Scale of the adapters: they are multiplied by lora_alpha / lora_r."
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="0: the policy ratio must not be noise.")
    lora_target_modules: str | list[str] = Field(
        default="all-linear", description="Which layers get adapters."
    )
    lora_modules_to_save: list[str] | None = Field(default=None, description="Layers that are trained whole.")


class TaskEntry(Section):
    """One Reasoning Gym task of a mix."""

    weight: float = Field(default=1.0, gt=0, description="How often it is drawn, relative to the others.")
    config: dict[str, Any] = Field(default_factory=dict, description="The task's own settings.")
    level: int | list[int] | None = Field(
        default=None,
        description="Difficulty from Reasoning Gym's curriculum; a list goes through the levels along the dataset "
        "(a curriculum with training.shuffle_dataset: false). `config` goes before it.",
    )


class DatasetEntry(Section):
    """Questions and answers from a file or the Hub."""

    path: str = Field(description="A .jsonl, .json, .csv, .tsv or .parquet file, or a Hugging Face id.")
    split: str = Field(default="train", description="Split trained on; files have none.")
    name: str | None = Field(default=None, description="Configuration of a Hugging Face dataset.")
    eval_split: str | None = Field(
        default=None, description="Split evaluated on. None: rows are held out of `split`."
    )


class FieldMapping(Section):
    """Which columns hold questions and answers."""

    question_field: str = "question"
    answer_field: str = "answer"


_TRL_DATASET = {
    "dataset_name": "path",
    "dataset_config": "name",
    "dataset_train_split": "split",
    "dataset_test_split": "eval_split",
}


class DataSection(Section):
    """What is trained on: `tasks` (Reasoning Gym), `datasets` (your own), or any Verifiers `environment`."""

    tasks: dict[str, TaskEntry] | None = Field(
        default=None,
        description="Reasoning Gym tasks with weights and settings. A mapping adds to that of a `_base_`, a list "
        "replaces it.",
    )
    datasets: list[DatasetEntry] | None = Field(
        default=None, description="Files or Hugging Face datasets, put together."
    )
    dataset_name: str | None = Field(default=None, description="TRL's name of datasets[0].path.")
    dataset_config: str | None = Field(default=None, description="TRL's name of datasets[0].name.")
    dataset_train_split: str | None = Field(default=None, description="TRL's name of datasets[0].split.")
    dataset_test_split: str | None = Field(default=None, description="TRL's name of datasets[0].eval_split.")
    environment: str | None = Field(default=None, description="Id of an installed Verifiers environment.")
    env_args: dict[str, Any] = Field(
        default_factory=dict, description="More arguments of its load_environment."
    )
    field_mapping: FieldMapping = Field(default_factory=FieldMapping, description="Columns of `datasets`.")
    num_train_examples: int | None = Field(default=None, ge=1, description="How many problems to train on.")
    num_eval_examples: int | None = Field(default=None, ge=0, description="How many problems to hold out.")
    dataset_seed: int = Field(
        default=0, description="Seed of the problems (training.seed is that of the training)."
    )
    eval_dataset_seed: int | None = Field(
        default=None, description="Seed of held-out Reasoning Gym problems."
    )
    eval_fraction: float | None = Field(default=None, ge=0, lt=1, description="Share of `datasets` held out.")
    system_prompt: str | None = Field(default="default", description="'default', a text, or null for none.")
    few_shot: list[dict[str, str]] | None = Field(
        default=None, description="Messages between system prompt and question."
    )
    think: bool | None = Field(default=None, description="Whether <think> comes before <answer>.")
    format_weight: float | None = Field(
        default=None, description="Weight of the environment's own format reward; needs `rewards: []`."
    )
    match: str | None = Field(
        default=None, description="How answers of `datasets` are compared: exact, normalized, numeric."
    )
    answer_regex: str | None = Field(
        default=None, description="Keep only what its first group finds in each answer."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_dataset(cls, values: Any) -> Any:
        """TRL's flat way to name one dataset becomes `datasets`."""
        if not isinstance(values, dict):
            return values
        entry = {field: values[name] for name, field in _TRL_DATASET.items() if values.get(name) is not None}
        others = {name: value for name, value in values.items() if name not in _TRL_DATASET}
        if not entry:
            return others
        if "path" not in entry:
            raise ValueError("dataset_config and splits belong to a dataset_name; set it, or write datasets")
        if others.get("datasets"):
            raise ValueError("dataset_name and datasets are both set; keep one and set the other to null")
        return {**others, "datasets": [entry]}

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_as_mapping(cls, tasks: Any) -> Any:
        """Accept a name, a list of names, and `{task: null}`, which is the task with its defaults."""
        if isinstance(tasks, str):
            tasks = [tasks]
        if isinstance(tasks, list):
            return _tasks_from_list(tasks)
        return {name: entry or {} for name, entry in tasks.items()} if isinstance(tasks, dict) else tasks

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        given = [name for name in ("tasks", "datasets", "environment") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; keep one and set the other to null")
        return self


class RewardSpec(Section):
    """One reward function; the reward of a completion is the weighted sum."""

    name: str = Field(description="correctness, strict_format, ..., or one of your rewards_module.")
    weight: float = Field(default=1.0, description="Weight in the sum; 0 makes it a metric.")
    params: dict[str, Any] = Field(default_factory=dict, description="Arguments of its class.")
    deadline: float | None = Field(
        default=None, gt=0, description="Seconds one score may take. None: the reward's own."
    )


class LoggingSection(Section):
    """What `training` has no name for. `report_to`, `steps`, `log_completions` ... may stand here too."""

    wandb_project: str | None = Field(default=None, description="WANDB_PROJECT.")
    wandb_entity: str | None = Field(default=None, description="WANDB_ENTITY.")
    wandb_tags: list[str] | None = Field(default=None, description="WANDB_TAGS.")
    wandb_mode: str | None = Field(default=None, description="WANDB_MODE: online, offline, disabled.")


class EvalSection(Section):
    """Empty: its keys are the `eval_...` ones of `training` without the prefix."""


class LaunchSection(Section):
    """How the programs are started."""

    num_processes: int | None = Field(
        default=None, ge=1, description="Trainer processes over all nodes; checked at start."
    )
    accelerate_config: str | None = Field(
        default=None, description="File for `accelerate launch --config-file` in a SLURM job."
    )
    setup: list[str] = Field(
        default_factory=list, description="Shell lines a SLURM job begins with, such as 'module load CUDA'."
    )
    server_args: list[str] = Field(
        default_factory=list, description="More flags of vf-vllm in a SLURM job, one word per item."
    )
    server_tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs of one replica of the model on a server, in a SLURM job."
    )


class Experiment(Section):
    """A whole experiment. `training` holds only what the files and overrides set."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    rewards: list[RewardSpec] = Field(
        default_factory=list, description="Empty: the environment's own rewards."
    )
    rewards_module: list[str] = Field(
        default_factory=list, description="Files or packages that register rewards."
    )
    training: Any = None
    eval: EvalSection = EvalSection()
    logging: LoggingSection = LoggingSection()
    launch: LaunchSection = LaunchSection()
    provenance: dict[str, Any] | None = Field(
        default=None, description="Written with a run: versions, git states, command."
    )

    @field_validator("rewards_module", mode="before")
    @classmethod
    def _as_list(cls, modules: Any) -> Any:
        return [modules] if isinstance(modules, str) else modules or []

    _origins: dict[KeyPath, Origin] = PrivateAttr(default_factory=dict)

    def remember(self, origins: Origins) -> None:
        """Keep where the values were written, for mistakes that only show when the experiment is built."""
        self._origins = dict(origins)

    def error_at(self, path: KeyPath, message: str) -> ConfigError:
        """An error about the value at `path`, with file and line where they are known."""
        return ConfigError.at(self._origins, path, message)

    @property
    def training_settings(self) -> dict[str, Any]:
        """The settings of `GRPOConfig` that were set."""
        return self.training.model_dump(exclude_unset=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of everything that was set, as YAML can hold them."""
        return self.model_dump(mode="json", exclude_unset=True)


def _tasks_from_list(tasks: list[Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for task in tasks:
        fields = {"name": task} if isinstance(task, str) else dict(task)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(
                f"{task!r} needs a name: write {{name: leg_counting, weight: 1.0, config: {{...}}}}"
            )
        if name in entries:
            raise ValueError(f"{name} is listed twice; list it once with the sum of the weights")
        entries[name] = fields
    return entries


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _field_type(name: str, hint: Any) -> Any:
    if name == "resume_from_checkpoint":
        return bool | str | None
    is_number = hint in (int, float, int | None, float | None)
    return Annotated[hint, BeforeValidator(_not_bool)] if is_number else hint


@functools.cache
def training_model() -> type[Section]:
    """The model of `training`: every field of `GRPOConfig`. Imports torch, so only on first use."""
    from grpo_gym.training.config import GRPOConfig

    hints = get_type_hints(GRPOConfig)
    names = [f.name for f in dataclasses.fields(GRPOConfig) if f.init]
    fields: dict[str, Any] = {name: (_field_type(name, hints[name]), None) for name in names}
    return create_model("TrainingSection", __base__=Section, **fields)


@functools.cache
def experiment_model() -> type[Experiment]:
    """`Experiment` with its `training` section."""
    training = training_model()
    return create_model(
        "Experiment", __base__=Experiment, training=(training, Field(default_factory=training))
    )


@functools.cache
def section_fields() -> dict[str, tuple[str, ...]]:
    """The keys of each section that is a mapping."""
    sections = {name: f.annotation for name, f in experiment_model().model_fields.items()}
    return {
        name: tuple(model.model_fields)
        for name, model in sections.items()
        if isinstance(model, type) and issubclass(model, Section)
    }
