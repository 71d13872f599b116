"""From the names of a training program's tensors to those of a Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from grpo_gym.training.weights import plain_name
from grpo_gym.vision.loading import sees_images

_ADAPTER_PART = re.compile(r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?!weight$|bias$)\w+")
_SAVED_PART = re.compile(r"\.modules_to_save\.\w+")
_WRAPPERS = ("module.", "_fsdp_wrapped_module.", "_orig_mod.")


def skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a configuration without memory for its weights."""
    auto_class: Any = AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def checkpoint_names(found: Iterable[str], model: PreTrainedModel) -> dict[str, str]:
    """For every tensor that the model needs: its name among those that were found.

    Tied weights come once, under the name of the embedding, wherever the trainer kept them.

    Raises:
        ValueError: tensors are missing, or have no place in the model.
    """
    names = {plain_name(name): name for name in found}
    tied: Mapping[str, str] = model.all_tied_weights_keys
    for target, source in tied.items():
        duplicate = names.pop(target, None)
        if duplicate is not None:
            names.setdefault(source, duplicate)
    persistent = model.state_dict().keys()
    missing = sorted(persistent - names.keys() - tied.keys())
    unknown = sorted(names.keys() - persistent)
    for what, problem in ((missing, "lacks"), (unknown, "holds")):
        if what:
            raise ValueError(
                f"the checkpoint {problem} {what[0]}{f' and {len(what) - 1} more' if len(what) > 1 else ''}: "
                f"its weights and its config.json ({type(model).__name__}) do not belong together."
            )
    return names


def adapter_names(found: Iterable[str]) -> dict[str, str]:
    """For every tensor of PEFT's adapter file: its name among those that were found.

    Raises:
        ValueError: none of them is an adapter's.
    """
    names = {_adapter_name(name): name for name in found if ".lora_" in name or ".modules_to_save." in name}
    names |= {
        name: name for name in found if name.startswith("base_model.model.") and name not in names.values()
    }
    if not any(".lora_" in name for name in names):
        raise ValueError("the checkpoint has an adapter_config.json, but no adapter's weights.")
    return names


def _adapter_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    name = _SAVED_PART.sub("", _ADAPTER_PART.sub(r"\1", name))
    return name if name.startswith("base_model.model.") else f"base_model.model.{name}"
