"""Which models see images, how their processor is loaded, and which of their parts are the vision ones."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any, TypeVar

from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoProcessor,
    PretrainedConfig,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

P = TypeVar("P", bound=type[ProcessorMixin])

SUPPORTED_FAMILIES = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "gemma3"})
"""Model types whose log-probs are compared in the tests (qwen2_vl shares qwen2_5_vl's code)."""
VISION_TOWERS = ("visual", "vision_tower", "vision_model")
PROJECTORS = ("visual.merger", "visual.deepstack_merger_list", "multi_modal_projector", "connector")
"""What turns vision features into embeddings of the language model."""
VISION_MODULES = r"(?:.*\.)?(?:visual|vision_tower|vision_model|multi_modal_projector|connector)(?:\..*)?"
"""Names of modules that are no part of the language model, as `exclude_modules` of PEFT."""


def sees_images(config: PretrainedConfig) -> bool:
    """Whether a model with this configuration takes images beside text."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config")


def check_family(config: PretrainedConfig) -> None:
    """Raise a ValueError for a vision-language model whose inputs are not known here."""
    if config.model_type not in SUPPORTED_FAMILIES:
        raise ValueError(
            f"{config.model_type} is not one of the vision-language models that can be trained: "
            f"{', '.join(sorted(SUPPORTED_FAMILIES))}."
        )


def load_processor(name: str, config: PretrainedConfig, **kwargs: Any) -> ProcessorMixin:
    """The processor of a model; without its video part where torchvision, which that needs, is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(name, **kwargs)
    import transformers

    processor_class = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])
    return image_only(processor_class).from_pretrained(name, **kwargs)


def image_only(processor_class: P) -> P:
    """A processor class that needs no video processor; the class itself where it never had one.

    Qwen's and SmolVLM's processors insist on a video processor, which exists for torchvision only.
    """
    attributes = processor_class.get_attributes()
    if "video_processor" not in attributes:
        return processor_class
    kept = [name for name in attributes if name != "video_processor"]

    def get_attributes(cls: type) -> list[str]:
        return kept

    def load_parts(cls: type, *args: Any, **kwargs: Any) -> list[Any]:
        inherited: Any = processor_class._get_arguments_from_pretrained
        parts: list[Any] = inherited.__func__(cls, *args, **kwargs)
        parts.insert(attributes.index("video_processor"), None)
        return parts

    # The same name: it is written into the checkpoint, for programs that know only the original.
    members: dict[str, Any] = {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(load_parts),
    }
    return type(processor_class.__name__, (processor_class,), members)  # type: ignore[return-value]


def part_of(name: str) -> str:
    """Which part of a vision-language model a parameter or module belongs to, by its dotted name.

    Returns:
        "vision_tower", "projector" or "language".
    """
    dotted = f".{name}."
    if any(f".{part}." in dotted for part in PROJECTORS):
        return "projector"
    return "vision_tower" if any(f".{part}." in dotted for part in VISION_TOWERS) else "language"


def freeze_parts(model: nn.Module, vision_tower: bool, projector: bool) -> None:
    """Leave parts of a vision-language model as they are in training.

    Raises:
        ValueError: the model has no such parts.
    """
    wanted = {"vision_tower": vision_tower, "projector": projector}
    frozen = {part for part, is_wanted in wanted.items() if is_wanted}
    if not frozen:
        return
    chosen = [parameter for name, parameter in model.named_parameters() if part_of(name) in frozen]
    if not chosen:
        raise ValueError(
            "freeze_vision_tower and freeze_multimodal_projector are for vision-language models; this one sees text "
            "only, so leave them false."
        )
    for parameter in chosen:
        parameter.requires_grad_(False)


def language_only(peft_config: Any) -> Any:
    """The same adapters, on the language model only, unless the configuration says itself what to exclude."""
    if getattr(peft_config, "exclude_modules", None):
        return peft_config
    changed = copy.deepcopy(peft_config)
    changed.exclude_modules = VISION_MODULES
    return changed
