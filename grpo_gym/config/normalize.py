"""Other ways to write an experiment, brought into sections: flat files, bare names, `eval:`, `logging:`."""

from __future__ import annotations

from collections.abc import Iterable

from grpo_gym.config.errors import ConfigError, KeyPath, Origin, nearest
from grpo_gym.config.schema import Experiment, section_fields
from grpo_gym.config.tree import Tree

BASE_KEY = "_base_"
# A section written as a single value: `model: Qwen/Qwen2.5-0.5B-Instruct`, `data: leg_counting`.
_SHORTHAND = {"model": "model_name_or_path", "data": "tasks"}
# Settings of `training` that may be written under `logging` with the name they have.
_LOGGING_NAMES = frozenset(
    {"report_to", "run_name", "log_completions", "log_completions_steps", "num_completions_to_print"}
)
# TRL has these in its ModelConfig; here they are settings of `training`, and may be written under `model` too.
_MODEL_NAMES = frozenset(
    {"torch_dtype", "attn_implementation", "freeze_vision_tower", "freeze_multimodal_projector"}
)
# What TRL calls settings of `training` that mean exactly the same.
_ALIASES = {"dtype": "torch_dtype", "vllm_max_model_length": "vllm_max_model_len"}
FIXED_EVAL_STEPS = "fixed_eval_steps"


def normalize(tree: Tree) -> Tree:
    """The same settings, every one under its section.

    A key that is no section goes to the one section that has it, so flat TRL-style files and bare overrides
    work alike. `datasets` as a mapping (weights and configs) are Reasoning Gym tasks.

    Raises:
        ConfigError: an unknown key (with the nearest known name), or one that several sections have.
    """
    result = Tree()
    for key in tree.values:
        if key == BASE_KEY:
            continue
        for source, target in _moves(tree, key):
            _copy(tree, source, result, target)
    return result


def keys_of_section(section: str) -> tuple[str, ...]:
    """What may be written under a section: its own keys, and those of `training` that may stand there too."""
    own, training = section_fields().get(section, ()), section_fields()["training"]
    if section == "eval":
        return (*own, FIXED_EVAL_STEPS, *_without_prefix("eval_", training))
    if section == "logging":
        return (*own, *sorted(_LOGGING_NAMES), *_without_prefix("logging_", training))
    return (*own, *sorted(_MODEL_NAMES)) if section == "model" else own


def _without_prefix(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _moves(tree: Tree, key: str) -> list[tuple[KeyPath, KeyPath]]:
    """Where the value of a top-level key, or each of the values in it, belongs."""
    value = tree.values[key]
    if key in Experiment.model_fields:
        if key in section_fields() and isinstance(value, dict):
            return [((key, name), _target_in_section(key, name)) for name in value]
        if key in _SHORTHAND and value is not None:
            return [((key,), (key, _SHORTHAND[key]))]
        return [((key,), (key,))] if value is not None else []
    return [((key,), _target_of_bare(tree, key))]


def _target_in_section(section: str, name: str) -> KeyPath:
    """Where `section.name` is kept: keys of eval, logging and model that belong to training go there."""
    training = section_fields()["training"]
    if section in ("training", "model"):
        name = _ALIASES.get(name, name)
    if name == FIXED_EVAL_STEPS and section == "eval":
        return ("training", FIXED_EVAL_STEPS)
    if section == "eval":
        candidates = [name if name.startswith("eval_") else f"eval_{name}"]
    elif section == "logging":
        candidates = [
            f"logging_{name}",
            *([name] if name in _LOGGING_NAMES or name.startswith("logging_") else []),
        ]
    elif section == "model":
        candidates = [name] if name in _MODEL_NAMES else []
    else:
        candidates = []
    found = [candidate for candidate in candidates if candidate in training]
    return ("training", found[0]) if found else (section, name)


def _target_of_bare(tree: Tree, key: str) -> KeyPath:
    if key == FIXED_EVAL_STEPS:
        return ("training", FIXED_EVAL_STEPS)
    if key in _ALIASES:
        return ("training", _ALIASES[key])
    owners = [section for section, names in section_fields().items() if key in names]
    if len(owners) == 1:
        return (owners[0], key)
    if owners:
        choices = " or ".join(f"{section}.{key}" for section in owners)
        raise ConfigError.at(tree.origins, (key,), f"several sections have this; write {choices}")
    known = [*Experiment.model_fields, *(name for names in section_fields().values() for name in names)]
    raise ConfigError.at(tree.origins, (key,), f"unknown setting{nearest(key, known)}")


def _copy(tree: Tree, source: KeyPath, result: Tree, target: KeyPath) -> None:
    value = tree.values
    for part in source:
        value = value[part]
    origins = tree.origins_below(source)
    if target == ("data", "datasets") and isinstance(value, dict) and not all(k.isdigit() for k in value):
        target = ("data", "tasks")
    if target == ("training", FIXED_EVAL_STEPS):
        own: dict[KeyPath, Origin] = {(): origins[()]}
        # "steps" without a number would be every logging_steps: null and 0 have to say "no".
        result.put(("training", "eval_strategy"), "steps" if value else "no", own)
        if value:
            result.put(("training", "eval_steps"), value, own)
        return
    result.put(target, value, origins)
