"""Everything that can be found out before weights are loaded: a mistake costs seconds, not minutes."""

from __future__ import annotations

import warnings

import verifiers as vf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from grpo_gym.evaluation.stable_rows import held_out_rows
from grpo_gym.inference.server_api import check_server, wait_for_server
from grpo_gym.models import resolve_model
from grpo_gym.rollouts.chat import ChatRenderer, check_chat_template
from grpo_gym.rollouts.prompts import EnvironmentRows, LazyRows, PromptStream, Row
from grpo_gym.rollouts.tool_calls import offered_tools
from grpo_gym.training.config import GRPOConfig
from grpo_gym.training.hub import check_hub
from grpo_gym.training.model_loading import context_length, load_renderer
from grpo_gym.vision.server_chat import check_servable


class Preflight:
    """Tokenizer, prompts and server of a run, checked.

    Attributes:
        model_name: name or resolved path of the model.
        processing_class: the tokenizer, or the processor of a vision-language model.
        tokenizer: the run's tokenizer.
        renderer: messages to ids.
        served_model_name: the name the servers know the model by.
        max_model_len: longest sequence of the model and of the servers.
        first_row: the first training row, the text of the weight-sync canary.
        stream: the training prompts in order.
        has_eval_set: whether the environment has held-out problems of its own.
        eval_rows: the fixed problems of evaluations.
        steps_per_epoch: optimizer steps in one pass over the prompts.

    Raises:
        ValueError: see the single checks.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        env: vf.Environment,
        args: GRPOConfig,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    ) -> None:
        self.args = args
        self._env = env
        self.model_name = resolve_model(model) if isinstance(model, str) else model.config._name_or_path
        check_hub(args)
        warn_about_biased_ratios(args)
        self.processing_class, self.renderer = load_renderer(
            model, processing_class, args.model_init_kwargs, args.chat_template_kwargs
        )
        self.tokenizer = self.renderer.tokenizer
        check_chat_template(self.processing_class, self.model_name)
        if args.use_vllm:
            check_servable(self.processing_class)
        context = context_length(model, args.model_init_kwargs)
        self.max_model_len = min(context, args.vllm_max_model_len or 2**31)
        self.served_model_name = self.model_name
        if args.use_vllm and args.vllm_mode == "server":
            self._check_servers()
        self.max_prompt_len = self._max_prompt_length()
        rows = EnvironmentRows(env, "train")
        self.first_row = rows[0]
        warn_about_ignored_tools(self.renderer, env, self.first_row)
        self.stream = PromptStream(rows, args.seed, args.shuffle_dataset, self._fits)
        self._check_some_prompt_fits(rows)
        self.has_eval_set = warn_without_eval_set(env)
        self.eval_rows = self._fitting_eval_rows(env)
        self.steps_per_epoch = -(-len(rows) // args.batch_plan.prompts_per_step) * args.num_iterations

    def _fitting_eval_rows(self, env: vf.Environment) -> list[Row]:
        rows = held_out_rows(env, self.args.eval_num_problems)
        fitting = [row for row in rows if self._fits(row)]
        if len(fitting) < len(rows):
            warnings.warn(
                f"{len(rows) - len(fitting)} of {len(rows)} evaluation prompts are longer than {self.max_prompt_len} "
                "tokens and are left out.",
                stacklevel=4,
            )
        return fitting

    def _max_prompt_length(self) -> int:
        room = self.max_model_len - self.args.max_completion_length
        if room < 1:
            raise ValueError(
                f"max_completion_length={self.args.max_completion_length} leaves no room for a prompt in the model's "
                f"context of {self.max_model_len} tokens; lower it."
            )
        return min(room, self.args.max_prompt_length or room)

    def _fits(self, row: Row) -> bool:
        return (
            len(self.renderer.prompt_ids(row["prompt"], offered_tools(self._env, row))) <= self.max_prompt_len
        )

    def _check_some_prompt_fits(self, rows: EnvironmentRows) -> None:
        """Draw once from a stream of its own, which raises when no prompt fits."""
        next(PromptStream(rows, self.args.seed, self.args.shuffle_dataset, self._fits))

    def _check_servers(self) -> None:
        """Wait for the servers; their context limits the prompts as the model's does."""
        needed = (self.args.max_prompt_length or 1) + self.args.max_completion_length
        for url in self.args.server_urls:
            wait_for_server(url, self.args.vllm_server_timeout)
            served = check_server(url, self.model_name, needed)
            self.served_model_name = served.name
            self.max_model_len = min(self.max_model_len, served.max_model_len)


def warn_without_eval_set(env: vf.Environment) -> bool:
    """Whether the environment has held-out problems; warns when evaluation has to use training problems."""
    has_eval_set = isinstance(env, LazyRows) or env.eval_dataset_source is not None
    if not has_eval_set:
        warnings.warn(
            "the environment has no eval_dataset, so evaluations sample TRAINING problems; pass eval_dataset=...",
            stacklevel=4,
        )
    return has_eval_set


def warn_about_ignored_tools(renderer: ChatRenderer, env: vf.Environment, row: Row) -> None:
    """Warn when the environment has tools that the chat template does not write into the prompt."""
    tools = offered_tools(env, row)
    if tools and renderer.ignores_tools(row["prompt"], tools):
        warnings.warn(
            "the environment has tools, but the model's chat template does not show them; describe the tools and "
            "<tool_call> in the system prompt, or use a model whose template knows tools.",
            stacklevel=4,
        )


def warn_about_biased_ratios(args: GRPOConfig) -> None:
    """Warn when the sampler's distribution is not the one the ratio assumes."""
    if args.importance_sampling_mode == "none":
        return
    filters = {"top_p": args.top_p < 1, "top_k": args.top_k > 0, "min_p": args.min_p > 0}
    active = [name for name, is_active in filters.items() if is_active]
    if active:
        warnings.warn(
            f"{', '.join(active)} cuts the distribution that is sampled from, which biases the importance ratios of "
            "importance_sampling_mode; use top_p=1, top_k=0, min_p=0 in training, or importance_sampling_mode='none'.",
            stacklevel=3,
        )
