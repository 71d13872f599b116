"""The model under evaluation: in this process, on a vf-vllm started here, or behind an OpenAI-compatible URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import verifiers as vf
from openai import AuthenticationError, PermissionDeniedError

from grpo_gym.evaluation.checkpoint import model_label
from grpo_gym.evaluation.config import EvalConfig
from grpo_gym.evaluation.results import Sample, format_score, sample_from_rollout
from grpo_gym.inference.sampler import Sampler, SamplingParams
from grpo_gym.rollouts.chat import ChatRenderer, check_chat_template
from grpo_gym.rollouts.convert import failure_of, messages_text, rollout_from_output
from grpo_gym.rollouts.engine import CountsRollouts
from grpo_gym.rollouts.prompts import Row
from grpo_gym.rollouts.scoring import SCORER_ERROR_KEY
from grpo_gym.rollouts.token_client import TokenClient

_STATE = ["trajectory", SCORER_ERROR_KEY]
_CONNECT_SECONDS = 60.0
_REQUEST_RETRIES = 4


class EvaluationStopped(RuntimeError):
    """The model does not answer, or does not answer any more; what was finished is kept."""


class Policy(Protocol):
    """Something that answers."""

    async def sample(self, env: vf.Environment, row: Row, count: int, seed: int) -> list[Sample]:
        """`count` scored samples of one problem; failures are in `Sample.error`."""
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...


@contextlib.contextmanager
def open_policy(config: EvalConfig) -> Iterator[Policy]:
    """The model of an evaluation; a server that was started for it is stopped, whatever happens.

    Raises:
        ValueError: the model cannot be used.
        EvaluationStopped: its server did not start.
    """
    if config.resolved_backend == "openai":
        yield OpenAIPolicy(config)
        return
    from grpo_gym.evaluation.whole_model import whole_model

    with whole_model(config) as checkpoint:
        if config.resolved_backend == "server":
            with _server_policy(config, checkpoint) as policy:
                yield policy
        else:
            yield _local_policy(config, checkpoint)


class TokenPolicy:
    """Samples token ids, with the tokenizer's chat template, as training does."""

    def __init__(
        self, sampler: Sampler, renderer: ChatRenderer, params: SamplingParams, seeded: bool
    ) -> None:
        self._sampler = sampler
        self._renderer = renderer
        self._params = params
        self._seeded = seeded
        self._counting = sampler if isinstance(sampler, CountsRollouts) else None

    async def sample(self, env: vf.Environment, row: Row, count: int, seed: int) -> list[Sample]:
        """Rollouts of the environment; in process, the seed decides them."""
        client = TokenClient(self._sampler, self._renderer, self._params, seed if self._seeded else None)
        if self._counting:
            self._counting.rollout_started(count)
        try:
            outputs = await env.run_group(
                [dict(row) for _ in range(count)],  # type: ignore[misc]
                client=client,
                model="policy",
                sampling_args={},
                state_columns=_STATE,
            )
        finally:
            if self._counting:
                self._counting.rollout_finished(count)
        return [sample_from_rollout(rollout_from_output(o, 0), env.pass_threshold) for o in outputs]

    async def close(self) -> None:
        """Release the sampler."""
        await self._sampler.close()


class OpenAIPolicy:
    """Samples messages with Verifiers' own client for chat completions."""

    def __init__(self, config: EvalConfig) -> None:
        self._config = config
        self._client: vf.Client | None = None

    async def sample(self, env: vf.Environment, row: Row, count: int, seed: int) -> list[Sample]:
        """Rollouts of the environment. Unseeded: what a server samples depends on what else it computes."""
        try:
            outputs = await env.run_group(
                [dict(row) for _ in range(count)],  # type: ignore[misc]
                client=self._open(),
                model=str(self._config.model),
                sampling_args=self._sampling_args(),
                state_columns=_STATE,
            )
        except (AuthenticationError, PermissionDeniedError) as error:
            raise EvaluationStopped(
                f"{self._config.base_url} refuses the key: {error}; set api_key_var to the variable that holds it."
            ) from error
        return [sample_from_output(output, env.pass_threshold) for output in outputs]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    def _open(self) -> vf.Client:
        # Inside the event loop that uses it.
        if self._client is None:
            from verifiers.clients import resolve_client

            self._client = resolve_client(
                vf.ClientConfig(
                    client_type="openai_chat_completions",
                    api_base_url=str(self._config.base_url),
                    # An empty name is never set: no key of another service is sent anywhere.
                    api_key_var=self._config.api_key_var or "",
                    timeout=self._config.request_timeout,
                    connect_timeout=_CONNECT_SECONDS,
                    max_retries=_REQUEST_RETRIES,
                )
            )
        return self._client

    def _sampling_args(self) -> dict[str, Any]:
        config = self._config
        arguments: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        if config.top_p < 1:
            arguments["top_p"] = config.top_p
        if config.chat_template_kwargs:
            arguments["extra_body"] = {"chat_template_kwargs": config.chat_template_kwargs}
        return arguments


def sample_from_output(output: Mapping[str, Any], threshold: float) -> Sample:
    """A Verifiers rollout without token ids as a `Sample`; an empty answer is a wrong one, not a failure."""
    is_empty = "EmptyModelResponse" in str(output.get("error") or "")
    error = None if is_empty else failure_of(output, has_tokens=bool(output.get("trajectory")))
    metrics = {} if error else {k: float(v) for k, v in (output.get("metrics") or {}).items()}
    reward = None if error else 0.0 if is_empty else float(output["reward"])
    score = None if error else next(iter(metrics.values()), reward)
    tokens = (output.get("token_usage") or {}).get("output_tokens")
    return Sample(
        completion=messages_text(output.get("completion")),
        score=score,
        correct=score is not None and score >= threshold,
        reward=reward,
        format=0.0 if is_empty and not metrics else format_score(metrics),
        metrics=metrics,
        num_tokens=int(tokens) if tokens is not None else None,
        truncated=bool(output.get("is_truncated")),
        error=error,
    )


def sampling_params(config: EvalConfig) -> SamplingParams:
    """How samplers are to sample."""
    return SamplingParams(config.max_tokens, temperature=config.temperature, top_p=config.top_p)


def _renderer(config: EvalConfig, checkpoint: str, is_served: bool) -> ChatRenderer:
    from grpo_gym.training.model_loading import load_renderer
    from grpo_gym.vision.server_chat import check_servable

    processing_class, renderer = load_renderer(checkpoint, None, None, config.chat_template_kwargs)
    check_chat_template(processing_class, checkpoint)
    if is_served:
        check_servable(processing_class)
    return renderer


def _local_policy(config: EvalConfig, checkpoint: str) -> TokenPolicy:
    import torch

    from grpo_gym.evaluation.whole_model import weights_dtype
    from grpo_gym.inference.local_sampler import LocalSampler
    from grpo_gym.training.model_loading import (
        auto_model_class,
        context_length,
        load_config,
        sequence_end_ids,
    )
    from grpo_gym.vision.generate import generator_for

    renderer = _renderer(config, checkpoint, is_served=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto_class = auto_model_class(load_config(checkpoint))
    model = auto_class.from_pretrained(checkpoint, dtype=weights_dtype(config)).eval()
    model.to(device)
    sampler = LocalSampler(
        lambda: model,
        renderer.tokenizer,
        max_model_len=min(context_length(model), config.max_model_len or 2**31),
        eos_token_ids=sequence_end_ids(model, renderer.tokenizer),
        seed=config.seed,
        generate_batch=generator_for(renderer),
    )
    return TokenPolicy(sampler, renderer, sampling_params(config), seeded=True)


@contextlib.contextmanager
def _server_policy(config: EvalConfig, checkpoint: str) -> Iterator[TokenPolicy]:
    from grpo_gym.inference.colocate import ColocatedServer
    from grpo_gym.inference.vllm_client import VLLMSampler

    renderer = _renderer(config, checkpoint, is_served=True)
    server = ColocatedServer(
        checkpoint,
        gpu_memory_utilization=config.gpu_memory_utilization,
        max_model_len=config.max_model_len,
        extra_args=config.server_args,
    )
    try:
        try:
            server.start(timeout=config.server_timeout)
        except (RuntimeError, TimeoutError) as error:
            reason = str(error).replace("vllm_server_timeout", "server_timeout")
            raise EvaluationStopped(f"model {model_label(config)}: {reason}") from error
        sampler = VLLMSampler([server.base_url], model=checkpoint, request_timeout=config.request_timeout)
        yield TokenPolicy(sampler, renderer, sampling_params(config), seeded=False)
    finally:
        server.stop()
