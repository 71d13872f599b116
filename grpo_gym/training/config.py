"""`GRPOConfig`: transformers' `TrainingArguments` plus what GRPO adds, under TRL's and vLLM's names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from dotenv import find_dotenv, load_dotenv
from transformers import HfArgumentParser, TrainingArguments

from grpo_gym.inference.rollout_dtype import ROLLOUT_DTYPES
from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.training.advantages import ADVANTAGE_SCALES
from grpo_gym.training.batch_arithmetic import BatchPlan, plan_batch
from grpo_gym.training.choices import check_choice
from grpo_gym.training.launch_checks import check_launch, choose_device, one_line_errors
from grpo_gym.training.losses import CISPO_RATIO_CAP, LOSS_TYPES, resolve_epsilon_high
from grpo_gym.training.mismatch import MISMATCH_MODES

VLLM_MODES = ("server", "colocate")
LORA_SYNCS = ("merge", "adapter")
CLIP_RANGES = {"gspo": (3e-4, 4e-4), "cispo": (0.2, CISPO_RATIO_CAP)}
"""`epsilon`, `epsilon_high` where they differ from 0.2 and 0.28 (PPO's and DAPO's clip-higher): GSPO's ratio
is a mean over a sequence and moves far less, CISPO's upper limit is a cap of the ratio itself."""


def _option(default: Any, help_text: str) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


@dataclass
class GRPOConfig(TrainingArguments):
    """Every setting of a GRPO run.

    All of `TrainingArguments` is accepted under its own name. Completions per optimizer step are
    `per_device_train_batch_size x processes x gradient_accumulation_steps`, a multiple of `num_generations`.

    Raises:
        ValueError: a value or a combination that cannot train; the message says what to use instead.
    """

    # Defaults of TrainingArguments that are different for GRPO.
    learning_rate: float = _option(1e-6, "Peak learning rate: 1e-6 for full fine-tuning, 1e-5 for LoRA.")
    lr_scheduler_type: str = _option("constant_with_warmup", "Learning-rate schedule.")
    logging_steps: float = _option(1, "Log every this many optimizer steps.")
    # Written in the order of TrainingArguments: HfArgumentParser takes the member after None.
    report_to: None | str | list[str] = _option(
        "tensorboard", "Where metrics go: tensorboard, wandb, none, ..."
    )
    bf16: bool | None = _option(  # type: ignore[assignment]
        None, "Mixed bfloat16. None: on where the GPU has it, off on CPU."
    )
    remove_unused_columns: bool = _option(False, "Kept False: rows belong to the environment.")

    # Model
    model_init_kwargs: dict[str, Any] = _option(
        {}, "Keyword arguments of AutoModelForCausalLM.from_pretrained."
    )
    torch_dtype: str | None = _option(
        None, "Dtype the weights are loaded in: float32, bfloat16, auto. None: float32."
    )
    attn_implementation: str | None = _option(
        None, "Attention of generation and the padded path: sdpa, eager, ..."
    )

    chat_template_kwargs: dict[str, Any] = _option(
        {}, "More arguments of the model's chat template, such as {enable_thinking: false} for Qwen3."
    )
    freeze_vision_tower: bool = _option(False, "Vision-language models: leave the vision tower as it is.")
    freeze_multimodal_projector: bool = _option(
        False, "Vision-language models: leave what maps image features to embeddings as it is."
    )

    # Rollouts
    num_generations: int = _option(8, "Completions per prompt (the group size G).")
    max_prompt_length: int | None = _option(
        None, "Longer prompts are left out (counted). None: what the model allows."
    )
    max_completion_length: int = _option(256, "Longest completion, in tokens.")
    max_tokens: int | None = _option(None, "Another name of max_completion_length.")
    max_new_tokens: int | None = _option(None, "Another name of max_completion_length.")
    temperature: float = _option(1.0, "Sampling temperature; the loss uses the same one.")
    top_p: float = _option(1.0, "Nucleus sampling; below 1 the importance ratios are biased.")
    top_k: int = _option(0, "Sample among the k most likely tokens; 0 means all.")
    min_p: float = _option(0.0, "Leave out tokens less likely than this share of the most likely one.")
    repetition_penalty: float = _option(1.0, "vLLM's repetition penalty.")
    shuffle_dataset: bool = _option(True, "Shuffle prompts in every epoch.")
    completions_per_step: int | None = _option(None, "Derived; set only to override the batch arithmetic.")
    max_rollout_retries: int = _option(
        2,
        "How often a rollout that could not be generated (server, time-out) is tried again; a completion that "
        "could not be scored never is.",
    )
    max_concurrent_rollouts: int = _option(512, "Rollouts in flight at once.")
    filter_zero_variance: bool = _option(
        False,
        "Leave out groups whose rewards are all equal and draw fresh prompts instead (dynamic sampling).",
    )
    max_refill: float = _option(
        2.0, "Fresh prompts per step for filter_zero_variance, in multiples of a step."
    )
    max_staleness: int | None = _option(
        None,
        "How many batches old rollouts may be (a batch is num_iterations optimizer steps). 0: strictly on-policy. "
        "None: 1 with a server, else 0.",
    )

    rollout_dtype: str | None = _option(
        None,
        "Dtype of in-process generation: float32, bfloat16, or auto for whichever is faster here. None: the policy's "
        "own. Another one keeps a copy of the weights, and importance_sampling_mode corrects the difference.",
    )

    # vLLM
    use_vllm: bool = _option(False, "Sample with a vf-vllm server instead of in this process.")
    vllm_mode: str = _option(
        "server", "server: one that runs already; colocate: started here, on the same device."
    )
    vllm_server_base_url: str | None = _option(None, "URL of the server; overrides host and port.")
    vllm_server_base_urls: list[str] | None = _option(None, "URLs of several independent servers.")
    vllm_server_host: str = _option("127.0.0.1", "Host of the server.")
    vllm_server_port: int = _option(8000, "Port of the server.")
    vllm_server_timeout: float = _option(240.0, "Seconds to wait for the server to come up.")
    vllm_server_takeover: bool = _option(
        False,
        "Take the server over from the trainer that holds it: for one that was killed on another machine, which the "
        "server cannot see. A trainer that is alive ends at its next weight sync.",
    )
    vllm_request_timeout: float = _option(600.0, "Seconds one completion may take.")
    vllm_gpu_memory_utilization: float = _option(0.3, "Share of the GPU a colocated server takes.")
    vllm_max_model_len: int | None = _option(None, "Context length of a colocated server.")
    vllm_canary_tolerance: float | None = _option(
        None,
        "Largest mean difference in nats of server's and trainer's log-probs after a sync. None: 0.02; 0.15 on GPUs, "
        "where bfloat16 rounds.",
    )
    lora_sync: str = _option(
        "merge",
        "How LoRA reaches a server: merge sends whole merged weights; adapter sends the adapter alone, to a vf-vllm "
        "started with --enable-lora.",
    )

    # Advantages and loss
    loss_type: str = _option("dapo", "grpo, bnpo, dr_grpo, dapo, gspo or cispo.")
    scale_rewards: str = _option("group", "Divide advantages by the std of: group, batch, none.")
    epsilon: float | None = _option(None, "Lower clip range of the ratio. None: 0.2; for gspo 3e-4.")
    epsilon_high: float | None = _option(
        None,
        "Upper clip range of the ratio. None: 0.28 (clip-higher); for gspo 4e-4; for cispo 5.0, the cap of the ratio.",
    )
    delta: float | None = _option(
        None, "Upper clip of the ratio for negative advantages (two-sided clipping)."
    )
    beta: float = _option(0.0, "Weight of the k3 KL to the reference model; 0 loads no reference.")
    num_iterations: int = _option(1, "Optimizer steps on each batch of rollouts.")
    mask_truncated_completions: bool = _option(
        False, "Leave completions that hit the length limit out of the loss."
    )
    importance_sampling_mode: str = _option(
        "token_truncate",
        "Sampler/trainer mismatch correction: token_truncate, token_mask, sequence_mask, none.",
    )
    importance_sampling_cap: float | None = _option(
        None, "Cap of the mismatch ratio. None: 3.0 by token, 1.05 for the mean ratio of sequence_mask."
    )

    # Speed and memory
    max_tokens_per_micro_batch: int = _option(
        16384, "Token budget of one forward and backward pass, padding included."
    )
    logprob_chunk_size: int = _option(1024, "Tokens projected to the vocabulary at once.")
    shared_prefix: bool = _option(
        True, "Compute the prompt of a group once (where the model's attention allows it)."
    )

    # Evaluation and logs
    fixed_eval_steps: int | None = _option(
        None,
        "Evaluate every this many optimizer steps (eval_strategy='steps' with eval_steps). 0 or null: not.",
    )
    eval_num_problems: int = _option(64, "Held-out problems of an evaluation.")
    eval_num_samples: int = _option(1, "Samples per held-out problem.")
    eval_temperature: float | None = _option(
        None, "Temperature of an evaluation; None: the training temperature."
    )
    log_completions: bool = _option(
        True, "Print sample completions now and then and keep all of them as Parquet."
    )
    log_completions_steps: int = _option(10, "Print sample completions every this many steps.")
    num_completions_to_print: int = _option(2, "How many sample completions are printed.")

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = os.path.join("outputs", self.run_name or "grpo")
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every micro-batch reaches every parameter
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self._resolve_completion_length()
        if self.fixed_eval_steps:
            self.eval_strategy, self.eval_steps = "steps", self.fixed_eval_steps
        self._check_reporting()
        choose_device(self)
        super().__post_init__()
        check_launch(self)
        self._check_choices()
        self._check_numbers()
        plan = self.batch_plan
        self.completions_per_step = plan.completions_per_step

    @classmethod
    def from_command_line(cls, argv: list[str] | None = None, **defaults: Any) -> GRPOConfig:
        """`defaults` overridden by `--name value` on the command line (and `.env` loaded first).

        Args:
            argv: the command line; `sys.argv[1:]` when None.
            **defaults: settings of the script.
        """
        load_dotenv(find_dotenv(usecwd=True))
        parser = HfArgumentParser(cls)  # type: ignore[arg-type]
        parser.set_defaults(**defaults)
        with one_line_errors(parser.prog):
            (config,) = parser.parse_args_into_dataclasses(args=argv)
        return config

    @property
    def batch_plan(self) -> BatchPlan:
        """Groups and completions of one optimizer step."""
        if self.completions_per_step is not None:
            return plan_batch(self.completions_per_step, 1, 1, self.num_generations)
        return plan_batch(
            self.per_device_train_batch_size,
            self.world_size,
            self.gradient_accumulation_steps,
            self.num_generations,
        )

    @property
    def sampling_params(self) -> SamplingParams:
        """How training completions are sampled."""
        return SamplingParams(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    @property
    def resolved_max_staleness(self) -> int:
        """`max_staleness` with its default; 0 in process, where rollouts and training share the model."""
        default = 1 if self.use_vllm and self.vllm_mode == "server" else 0
        return default if self.max_staleness is None else self.max_staleness

    @property
    def server_urls(self) -> list[str]:
        """The vf-vllm servers of `vllm_mode="server"`, without a trailing slash or `/v1`."""
        urls = self.vllm_server_base_urls or [
            self.vllm_server_base_url or f"http://{self.vllm_server_host}:{self.vllm_server_port}"
        ]
        return [url.rstrip("/").removesuffix("/v1") for url in urls]

    def _resolve_completion_length(self) -> None:
        aliases = {length for length in (self.max_tokens, self.max_new_tokens) if length is not None}
        if len(aliases) > 1:
            raise ValueError("max_tokens and max_new_tokens are the same setting; give one of them.")
        if aliases:
            self.max_completion_length = aliases.pop()
        # Cleared, so that a copy of the config with another max_completion_length means what it says.
        self.max_tokens = self.max_new_tokens = None

    def _check_reporting(self) -> None:
        from transformers.integrations import get_available_reporting_integrations

        wanted = self.report_to if isinstance(self.report_to, list) else [self.report_to]
        missing = set(filter(None, wanted)) - {"none", "all"} - set(get_available_reporting_integrations())
        if missing:
            name = sorted(missing)[0]
            raise ValueError(
                f"report_to={name!r}: the package is not installed; `uv pip install {name}`, or use report_to='none'."
            )

    def _check_choices(self) -> None:
        # TRL also accepts True and False.
        self.scale_rewards = {"true": "group", "false": "none"}.get(
            str(self.scale_rewards).lower(), self.scale_rewards
        )
        choices = {
            "loss_type": LOSS_TYPES,
            "scale_rewards": ADVANTAGE_SCALES,
            "importance_sampling_mode": MISMATCH_MODES,
            "vllm_mode": VLLM_MODES,
            "lora_sync": LORA_SYNCS,
        }
        for name, allowed in choices.items():
            check_choice(name, getattr(self, name), allowed)
        if self.rollout_dtype is not None:
            check_choice("rollout_dtype", self.rollout_dtype, ROLLOUT_DTYPES)
        epsilon, epsilon_high = CLIP_RANGES.get(self.loss_type, (0.2, 0.28))
        self.epsilon = epsilon if self.epsilon is None else self.epsilon
        if self.epsilon_high is None:
            self.epsilon_high = max(epsilon_high, self.epsilon)
        resolve_epsilon_high(self.loss_type, self.epsilon, self.epsilon_high, self.delta)

    def _check_numbers(self) -> None:
        positive = (
            "max_completion_length",
            "num_iterations",
            "max_tokens_per_micro_batch",
            "logprob_chunk_size",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use at least 1.")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature}: greedy completions of a prompt are all alike; use a value above 0."
            )
        if not self.use_vllm and self.max_staleness:
            raise ValueError(
                f"max_staleness={self.max_staleness} needs use_vllm=True: in one process nothing can be overlapped."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size would break groups apart; lower max_tokens_per_micro_batch to save memory."
            )
