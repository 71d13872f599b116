"""What one optimizer step of an experiment consists of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_gym.planning.shapes import ModelShape, find_shape

if TYPE_CHECKING:
    from grpo_gym.config.schema import Experiment
    from grpo_gym.rollouts.prompts import EnvironmentRows
    from grpo_gym.training.config import GRPOConfig

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
_CHARACTERS_PER_TOKEN = 3.5
_TEMPLATE_TOKENS = 15
_SAMPLED_PROMPTS = 32
_VLLM_PREFILL_TOKENS = 8192
_IN_PROCESS_PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """One optimizer step.

    Attributes:
        shape: of the trained model.
        completions: of a step, all ranks.
        group_size: completions per prompt.
        prompt_tokens: mean length of a prompt.
        completion_tokens: mean length of a completion.
        longest_completion: tokens of the longest completion of a step.
        max_completion_length: what room is kept for.
        micro_batch_tokens: budget of a forward and backward pass.
        chunk_tokens: tokens projected to the vocabulary at once.
        prefill_tokens: prompt tokens computed in one forward pass.
        weight_width: bytes of a trained weight.
        compute_width: bytes of a number in forward and backward.
        serve_width: bytes of a weight and of a cached number where tokens are sampled.
        gradient_width: bytes of a gradient.
        adapter_parameters: LoRA parameters; 0 trains all weights.
        shared_prefix: prompts are computed once per group.
        gradient_checkpointing: only the layers' inputs are kept.
        has_reference: a reference model is computed for the KL.
        overlapped: with separate servers the next step's rollouts are generated while this one trains.
        uses_server: tokens come from vf-vllm rather than from the trainer's process.
        num_iterations: optimizer steps on the same rollouts.
    """

    shape: ModelShape
    completions: int
    group_size: int
    prompt_tokens: float
    completion_tokens: float
    longest_completion: int
    max_completion_length: int
    micro_batch_tokens: int = 16384
    chunk_tokens: int = 1024
    prefill_tokens: int = _VLLM_PREFILL_TOKENS
    weight_width: int = 4
    compute_width: int = 2
    serve_width: int = 2
    gradient_width: int = 4
    adapter_parameters: int = 0
    shared_prefix: bool = True
    gradient_checkpointing: bool = False
    has_reference: bool = False
    overlapped: bool = False
    uses_server: bool = True
    num_iterations: int = 1

    @property
    def num_prompts(self) -> int:
        """Prompts of a step."""
        return self.completions // self.group_size

    @property
    def trained_parameters(self) -> int:
        """Parameters with gradients and optimizer state."""
        return self.adapter_parameters or self.shape.num_parameters

    @property
    def backward_passes(self) -> float:
        """Cost of the backward pass in forward passes: frozen weights need no gradient of their own."""
        return 1.0 if self.adapter_parameters else 2.0


def workload_of(
    experiment: Experiment,
    args: GRPOConfig,
    completions: int,
    on_gpu: bool = True,
    mean_completion: float | None = None,
    prompt_tokens: float | None = None,
) -> Workload:
    """The workload of an experiment.

    Args:
        experiment: model and data.
        args: its settings.
        completions: per step, for all ranks.
        on_gpu: bfloat16 arithmetic and sampling, as GPUs do by default.
        mean_completion: mean tokens of a completion; all are of full length when None.
        prompt_tokens: mean tokens of a prompt; counted on some prompts of the data when None.

    Raises:
        ValueError: the model's shape is not known.
    """
    from grpo_gym.config.build import model_name

    shape = find_shape(model_name(experiment), experiment.model.trust_remote_code)
    weight_width = _WIDTHS.get(args.torch_dtype or "float32", 4)
    longest = args.max_completion_length
    return Workload(
        shape=shape,
        completions=completions,
        group_size=args.num_generations,
        prompt_tokens=prompt_tokens or count_prompt_tokens(experiment),
        completion_tokens=min(mean_completion or longest, longest),
        longest_completion=longest,
        max_completion_length=longest,
        micro_batch_tokens=args.max_tokens_per_micro_batch,
        chunk_tokens=args.logprob_chunk_size,
        prefill_tokens=_VLLM_PREFILL_TOKENS if args.use_vllm else _IN_PROCESS_PREFILL_TOKENS,
        weight_width=weight_width,
        compute_width=2 if on_gpu else weight_width,
        serve_width=2 if on_gpu else weight_width,
        gradient_width=weight_width,
        adapter_parameters=shape.lora_parameters(experiment.model.lora_r) if experiment.model.use_peft else 0,
        shared_prefix=args.shared_prefix,
        gradient_checkpointing=bool(args.gradient_checkpointing),
        has_reference=bool(args.beta) and not experiment.model.use_peft,
        overlapped=args.max_staleness != 0,
        uses_server=args.use_vllm or on_gpu,
        num_iterations=args.num_iterations,
    )


def count_prompt_tokens(experiment: Experiment) -> float:
    """Mean tokens of the first prompts, by the model's tokenizer where it lies here, else by their characters."""
    from grpo_gym.config.build import build_environment, model_name
    from grpo_gym.models import resolve_model
    from grpo_gym.rollouts.convert import messages_text
    from grpo_gym.rollouts.prompts import EnvironmentRows

    rows = EnvironmentRows(build_environment(experiment), "train")
    prompts = list(itertools.islice(_prompts(rows), _SAMPLED_PROMPTS))
    if not prompts:
        raise ValueError("no prompt of the data could be made; give --prompt-tokens.")
    lengths = [len(messages_text(prompt)) / _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS for prompt in prompts]
    try:
        from transformers import AutoTokenizer

        from grpo_gym.rollouts.chat import ChatRenderer

        name = resolve_model(model_name(experiment))
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        renderer = ChatRenderer(tokenizer, experiment.training_settings.get("chat_template_kwargs"))
        lengths = [len(renderer.prompt_ids(prompt)) for prompt in prompts]
    except OSError:
        pass  # the tokenizer is not on this machine: characters tell well enough
    return sum(lengths) / len(lengths)


def _prompts(rows: EnvironmentRows) -> Iterator[Any]:
    for index in range(min(2 * _SAMPLED_PROMPTS, len(rows))):
        try:
            yield rows[index]["prompt"]
        except ValueError:
            continue  # some Reasoning Gym entries cannot be made; the lengths of the others are as good
