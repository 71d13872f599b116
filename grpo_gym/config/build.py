"""From an `Experiment` to the objects a run is made of: environment, arguments, adapters, trainer."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import TYPE_CHECKING, Any

from grpo_gym.config.errors import ConfigError, nearest
from grpo_gym.config.schema import DataSection, DatasetEntry, Experiment, LoggingSection, ModelSection
from grpo_gym.models import default_model
from grpo_gym.rewards.registry import RewardParamError, check_reward, load_rewards_module

if TYPE_CHECKING:
    import verifiers as vf
    from datasets import Dataset

    from grpo_gym.training.config import GRPOConfig
    from grpo_gym.training.trainer import GRPOTrainer

# Settings of `data` that are passed on under the name the environment packages have for them.
_COMMON = {
    "num_train_examples": "num_train_examples",
    "num_eval_examples": "num_eval_examples",
    "dataset_seed": "seed",
    "system_prompt": "system_prompt",
    "few_shot": "few_shot",
    "format_weight": "format_weight",
}
_TASKS_ONLY = {"eval_dataset_seed": "eval_seed"}
_ENV_ARGS = ("data", "env_args")
_DATASETS_ONLY = {"eval_fraction": "eval_fraction", "match": "match", "think": "think"}


def build_trainer(experiment: Experiment, args: GRPOConfig | None = None) -> GRPOTrainer:
    """The trainer of an experiment.

    Args:
        experiment: the experiment.
        args: its settings, where they were built already.

    Raises:
        ConfigError: parts of the experiment do not fit together or into this machine.
        ValueError: see `GRPOConfig` and `GRPOTrainer`.
    """
    from grpo_gym.training.trainer import GRPOTrainer

    export_logging(experiment.logging)
    args = args or build_args(experiment)
    check_processes(experiment, args.world_size)
    return GRPOTrainer(
        model=model_name(experiment),
        env=build_environment(experiment),
        args=args,
        peft_config=build_peft(experiment.model),
    )


def model_name(experiment: Experiment) -> str:
    """The model of the experiment, or the default of this machine."""
    return experiment.model.model_name_or_path or default_model()


def build_args(experiment: Experiment, **changes: Any) -> GRPOConfig:
    """The trainer's settings.

    Args:
        experiment: the experiment.
        **changes: settings to use instead.
    """
    from grpo_gym.training.config import GRPOConfig

    settings = experiment.training_settings
    loading = {
        "trust_remote_code": experiment.model.trust_remote_code or None,
        "revision": experiment.model.model_revision,
    }
    given = {name: value for name, value in loading.items() if value is not None}
    if given:
        settings["model_init_kwargs"] = {**given, **(settings.get("model_init_kwargs") or {})}
    if isinstance(settings.get("resume_from_checkpoint"), bool):
        del settings["resume_from_checkpoint"]
    return GRPOConfig(**{**settings, **changes})


def resume_choice(experiment: Experiment) -> str | bool | None:
    """`training.resume_from_checkpoint`: true for the latest checkpoint, or a folder."""
    return experiment.training_settings.get("resume_from_checkpoint")


def build_peft(model: ModelSection) -> Any | None:
    """The LoRA configuration, or None for full fine-tuning."""
    if not model.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_target_modules,
        modules_to_save=model.lora_modules_to_save,
    )


def build_environment(experiment: Experiment) -> vf.Environment:
    """The environment, with the experiment's rewards when it names any.

    Raises:
        ConfigError: nothing to train on, a setting that would be ignored, or a missing package.
        ValueError: the data or a reward cannot be used.
    """
    data = experiment.data
    if experiment.rewards:
        _refuse_format_weight(data)
    if data.tasks:
        env = _load_package(experiment, "reasoning_gym_tasks", _task_arguments(data))
    elif data.datasets:
        env = _load_package(experiment, "question_answer", _dataset_arguments(data))
    elif data.environment:
        env = _load_any(experiment)
    else:
        raise ConfigError("data: nothing to train on; set data.tasks, data.datasets or data.environment.")
    for module in experiment.rewards_module:
        load_rewards_module(module)
    if experiment.rewards:
        from grpo_gym.rewards.rubric import use_rewards

        check_rewards(experiment)
        use_rewards(env, experiment.rewards)
    return env


def check_rewards(experiment: Experiment) -> None:
    """Raise a ConfigError, with file and line, for a reward that cannot be made; its module must be loaded."""
    for index, choice in enumerate(experiment.rewards):
        path = ("rewards", str(index))
        try:
            check_reward(choice.name, choice.params)
        except RewardParamError as error:
            raise experiment.error_at((*path, "params", error.param), str(error)) from error
        except ValueError as error:
            raise experiment.error_at(path, str(error)) from error


def check_processes(experiment: Experiment, num_processes: int) -> None:
    """Raise a ConfigError when another number of processes runs than the experiment was planned for."""
    planned = experiment.launch.num_processes
    if planned not in (None, num_processes):
        raise ConfigError(
            f"launch.num_processes is {planned}, but {num_processes} run(s); start with `accelerate launch "
            f"--num-processes {planned} -m grpo_gym.cli train FILE`, or set it to {num_processes}."
        )


def export_logging(logging: LoggingSection) -> None:
    """Set what W&B reads from the environment; variables that are set already win."""
    for name in ("wandb_project", "wandb_entity", "wandb_tags", "wandb_mode"):
        value = getattr(logging, name)
        if value is not None:
            os.environ.setdefault(name.upper(), ",".join(value) if isinstance(value, list) else value)


def _task_arguments(data: DataSection) -> dict[str, Any]:
    _refuse(data, _DATASETS_ONLY.keys() - {"think"} | {"answer_regex", "field_mapping"}, "data.datasets")
    arguments = _renamed(data, _COMMON | _TASKS_ONLY)
    if data.think is not None:
        arguments["parser_fields"] = ("think", "answer") if data.think else ("answer",)
    gym = [
        {"name": name, "weight": task.weight, "config": task.config, "level": task.level}
        for name, task in (data.tasks or {}).items()
    ]
    return {"gym": gym, **arguments}


def _dataset_arguments(data: DataSection) -> dict[str, Any]:
    _refuse(data, set(_TASKS_ONLY), "data.tasks")
    entries = data.datasets or []
    arguments: dict[str, Any] = {"dataset": _concatenated(data, entries, [entry.split for entry in entries])}
    with_eval = [entry for entry in entries if entry.eval_split]
    if with_eval:
        splits = [str(entry.eval_split) for entry in with_eval]
        arguments["eval_dataset"] = _concatenated(data, with_eval, splits)
    return {**arguments, **_renamed(data, _COMMON | _DATASETS_ONLY)}


def _concatenated(data: DataSection, entries: list[DatasetEntry], splits: list[str]) -> Dataset:
    from datasets import concatenate_datasets
    from question_answer.data import load_pairs

    fields = data.field_mapping
    parts = [
        load_pairs(
            entry.path, split, entry.name, fields.question_field, fields.answer_field, data.answer_regex
        )
        for entry, split in zip(entries, splits, strict=True)
    ]
    return concatenate_datasets(parts)


def _load_package(experiment: Experiment, package: str, arguments: dict[str, Any]) -> vf.Environment:
    """A package of this project, with the arguments that `data` gives, and its `env_args` over them."""
    env_args = experiment.data.env_args
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(f"the environment package {package} is not installed; run ./setup.sh.") from error
    known = inspect.signature(module.load_environment).parameters
    for name in env_args:
        if name not in known:
            message = f"{package} has no such argument{nearest(name, known)}"
            raise experiment.error_at((*_ENV_ARGS, name), message)
    try:
        return module.load_environment(**{**arguments, **env_args})
    except TypeError as error:
        if not env_args:
            raise
        raise experiment.error_at(_ENV_ARGS, f"{package} cannot be made with them: {error}") from error


def _load_any(experiment: Experiment) -> vf.Environment:
    """Any installed Verifiers environment; settings of `data` it does not know are for its `env_args`.

    Raises:
        ConfigError: it cannot be loaded; Verifiers makes a RuntimeError of whatever was wrong.
    """
    import verifiers as vf

    data = experiment.data
    _refuse(
        data, set(DataSection.model_fields) - {"environment", "env_args"} - {"tasks", "datasets"}, "env_args"
    )
    try:
        return vf.load_environment(str(data.environment), **data.env_args)
    except RuntimeError as error:
        path = _ENV_ARGS if data.env_args else ("data", "environment")
        raise experiment.error_at(path, " ".join(str(error).split())) from error


def _renamed(data: DataSection, names: dict[str, str]) -> dict[str, Any]:
    """The settings that were set, under the environment's names."""
    return {names[name]: getattr(data, name) for name in names if name in data.model_fields_set}


def _refuse_format_weight(data: DataSection) -> None:
    """Raise a ConfigError for the weight of a reward that `rewards` replaces."""
    for key, weight in (
        ("data.format_weight", data.format_weight),
        ("data.env_args.format_weight", data.env_args.get("format_weight")),
    ):
        if weight:
            raise ConfigError(
                f"{key}: it has no effect beside rewards, which replace the environment's own reward functions; add "
                f"{{name: strict_format, weight: {weight}}} to rewards, or set rewards: []."
            )


def _refuse(data: DataSection, names: set[str], instead: str) -> None:
    """Raise a ConfigError for settings that would be ignored."""
    found = sorted(name for name in names & data.model_fields_set if getattr(data, name) is not None)
    if found:
        raise ConfigError(f"data.{found[0]}: this kind of data does not have it; it belongs to {instead}.")
