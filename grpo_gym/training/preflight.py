"""Everything that can be found out before weights are loaded: a mistake costs seconds, not minutes."""

from __future__ import annotations

import warnings

import verifiers as vf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_gym.inference.server_api import check_server, wait_for_server
from grpo_gym.models import resolve_model
from grpo_gym.rollouts.chat import ChatRenderer, check_chat_template
from grpo_gym.rollouts.prompts import EnvironmentRows, PromptStream, Row, select_eval_rows
from grpo_gym.training.config import GRPOConfig
from grpo_gym.training.model_loading import context_length, load_tokenizer


class Preflight:
    """Tokenizer, prompts and server of a run, checked.

    Attributes:
        model_name: name or resolved path of the model.
        tokenizer: the run's tokenizer.
        renderer: messages to ids.
        max_model_len: longest sequence of the model (and of the servers).
        stream: the training prompts in order.
        eval_rows: the fixed held-out problems.
        steps_per_epoch: optimizer steps in one pass over the prompts.

    Raises:
        ValueError: see the single checks.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        env: vf.Environment,
        args: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.args = args
        self.model_name = resolve_model(model) if isinstance(model, str) else model.config._name_or_path
        warn_about_biased_ratios(args)
        self.tokenizer = load_tokenizer(model, tokenizer)
        check_chat_template(self.tokenizer, self.model_name)
        self.renderer = ChatRenderer(self.tokenizer)
        self.max_model_len = min(context_length(model), args.vllm_max_model_len or 2**31)
        self.max_prompt_len = self._max_prompt_length()
        rows = EnvironmentRows(env, "train")
        self.stream = PromptStream(rows, args.seed, args.shuffle_dataset, self._fits)
        self._check_some_prompt_fits(rows)
        self.eval_rows = [
            r for r in select_eval_rows(EnvironmentRows(env, "eval"), args.eval_num_problems) if self._fits(r)
        ]
        self.steps_per_epoch = -(-len(rows) // args.batch_plan.prompts_per_step) * args.num_iterations
        if args.use_vllm and args.vllm_mode == "server" and args.process_index == 0:
            self._check_servers()

    def _max_prompt_length(self) -> int:
        room = self.max_model_len - self.args.max_completion_length
        if room < 1:
            raise ValueError(
                f"max_completion_length={self.args.max_completion_length} leaves no room for a prompt in the model's "
                f"context of {self.max_model_len} tokens; lower it."
            )
        return min(room, self.args.max_prompt_length or room)

    def _fits(self, row: Row) -> bool:
        return len(self.renderer.prompt_ids(row["prompt"])) <= self.max_prompt_len

    def _check_some_prompt_fits(self, rows: EnvironmentRows) -> None:
        """Draw once from a stream of its own, which raises when no prompt fits."""
        next(PromptStream(rows, self.args.seed, self.args.shuffle_dataset, self._fits))

    def _check_servers(self) -> None:
        needed = min(self.max_prompt_len, self.args.max_prompt_length or 1) + self.args.max_completion_length
        for url in self.args.server_urls:
            wait_for_server(url, self.args.vllm_server_timeout)
            check_server(url, self.model_name, needed)


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
