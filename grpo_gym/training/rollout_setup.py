"""Builds the rollout side of a trainer: backend, engine and orchestrator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_gym.inference.adapter_endpoint import ADAPTER_NAME, served_rank
from grpo_gym.inference.backends import Backend, ColocatedBackend, LocalBackend, ServerBackend
from grpo_gym.inference.cleanup import closed_on_error
from grpo_gym.inference.colocate import ColocatedServer, source_flags
from grpo_gym.inference.sampler import Sampler
from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.manager import RolloutManager
from grpo_gym.rollouts.overlap import OverlappedSource
from grpo_gym.rollouts.prompts import PromptStream
from grpo_gym.rollouts.source import RolloutSource, SourceSettings
from grpo_gym.training.adapter_weights import adapted_modules, adapter_config_of, check_adapter
from grpo_gym.training.canary import Canary
from grpo_gym.training.config import GRPOConfig
from grpo_gym.training.model_loading import sequence_end_ids
from grpo_gym.vision.generate import generator_for

if TYPE_CHECKING:
    from grpo_gym.training.trainer import GRPOTrainer


def build_rollouts(trainer: GRPOTrainer) -> RolloutManager:
    """The rollout manager of every rank; rank 0's has the engine that runs the environment."""
    backend = _build_backend(trainer)
    with closed_on_error(backend.close):
        source = None if backend.sampler is None else _start_engine(trainer, backend.sampler)
        return RolloutManager(backend, source)


def _start_engine(trainer: GRPOTrainer, sampler: Sampler) -> RolloutSource:
    args = trainer.args
    engine = RolloutEngine(
        trainer.env,
        sampler,
        trainer.preflight.renderer,
        max_retries=args.max_rollout_retries,
        max_concurrent=args.max_concurrent_rollouts,
    )
    with closed_on_error(engine.close):
        return _build_source(args, engine, trainer.preflight.stream)


def _build_source(args: GRPOConfig, engine: RolloutEngine, stream: PromptStream) -> RolloutSource:
    # A server's results depend on what else is in its batch, so seeds buy nothing there, and cost speed.
    seeded = not args.use_vllm or args.full_determinism
    settings = SourceSettings(
        prompts_per_step=args.batch_plan.prompts_per_step,
        num_generations=args.num_generations,
        params=args.sampling_params,
        seed=args.seed if seeded else None,
        filter_zero_variance=args.filter_zero_variance,
        max_refill=args.max_refill,
        max_staleness=args.resolved_max_staleness,
        # The version is the optimizer step, and a batch of rollouts lasts for several of them.
        versions_per_step=args.num_iterations,
    )
    source_class = OverlappedSource if settings.max_staleness else RolloutSource
    return source_class(engine, stream, settings)


def _build_backend(trainer: GRPOTrainer) -> Backend:
    args, preflight = trainer.args, trainer.preflight
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not args.use_vllm:
        return LocalBackend(
            model,
            preflight.tokenizer,
            trainer.accelerator,
            eos_token_ids=sequence_end_ids(model, preflight.tokenizer),
            max_model_len=preflight.max_model_len,
            seed=args.seed,
            rollout_dtype=args.rollout_dtype,
            generate_batch=generator_for(preflight.renderer),
        )
    adapter = _adapter_to_send(args, model)
    if adapter is not None:
        preflight.served_model_name = ADAPTER_NAME
    common: dict[str, Any] = {
        "adapter": adapter,
        "model_name": preflight.served_model_name,
        "accelerator": trainer.accelerator,
        "request_timeout": args.vllm_request_timeout,
        "server_timeout": args.vllm_server_timeout if args.vllm_mode == "server" else 0.0,
        "canary": Canary(trainer),
    }
    if args.vllm_mode == "server":
        return ServerBackend(urls=args.server_urls, takeover=args.vllm_server_takeover, **common)
    server = None
    if trainer.accelerator.is_main_process:
        server = ColocatedServer(
            preflight.model_name,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_len=preflight.max_prompt_len + args.max_completion_length,
            extra_args=[*source_flags(args.model_init_kwargs), *_adapter_flags(adapter)],
            log_path=Path(str(args.output_dir), "logs", "vf-vllm.log"),
        )
        server.start(timeout=args.vllm_server_timeout)
    return ColocatedBackend(server, urls=[server.base_url] if server else [""], **common)


def _adapter_to_send(args: GRPOConfig, model: Any) -> Any | None:
    """The LoRA configuration when only the adapter is sent, with the names of the modules it changes.

    Raises:
        ValueError: lora_sync="adapter" with an adapter that vLLM does not serve, or without one.
    """
    if args.lora_sync != "adapter":
        return None
    adapter = adapter_config_of(model)
    modules = adapted_modules(model)
    check_adapter(adapter, modules)
    # PEFT also takes patterns; vLLM wants names.
    return dataclasses.replace(adapter, target_modules=modules)


def _adapter_flags(adapter: Any | None) -> list[str]:
    if adapter is None:
        return []
    modules = ["--lora-target-modules", *sorted(adapter.target_modules)]
    return ["--enable-lora", "--max-lora-rank", str(served_rank(adapter.r)), *modules]
