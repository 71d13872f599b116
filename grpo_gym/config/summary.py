"""What `--dry-run` prints: the resolved experiment and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from grpo_gym.config import estimate
from grpo_gym.config.build import build_args, build_environment, model_name
from grpo_gym.config.schema import Experiment
from grpo_gym.training.batch_arithmetic import BatchPlan, plan_batch
from grpo_gym.training.config import GRPOConfig


@dataclass(frozen=True)
class Plan:
    """The numbers of a run."""

    model: str
    batch: BatchPlan
    num_processes: int
    train_rows: int
    eval_rows: int
    steps: int
    args: GRPOConfig
    size: estimate.ModelSize | None


def plan_run(experiment: Experiment) -> Plan:
    """Work the numbers out, which checks settings, data and rewards on the way; loads no weights.

    Raises:
        ValueError: what the run itself would refuse.
    """
    from grpo_gym.rollouts.prompts import EnvironmentRows

    args, batch, processes = planned_arguments(experiment)
    env = build_environment(experiment)
    train_rows = len(EnvironmentRows(env, "train"))
    name = model_name(experiment)
    return Plan(
        model=name,
        batch=batch,
        num_processes=processes,
        train_rows=train_rows,
        eval_rows=min(args.eval_num_problems, len(EnvironmentRows(env, "eval"))),
        steps=estimate.count_steps(args, batch, train_rows),
        args=args,
        size=estimate.model_size(name, experiment.model),
    )


def describe(experiment: Experiment, plan: Plan) -> str:
    """The experiment as YAML, then one line per number."""
    resolved = yaml.safe_dump(experiment.to_dict(), sort_keys=False, allow_unicode=True, width=110)
    rows = [*_batch_rows(plan), *_memory_rows(experiment, plan)]
    width = max(len(name) for name, _ in rows)
    return resolved + "\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def planned_arguments(experiment: Experiment) -> tuple[GRPOConfig, BatchPlan, int]:
    """Settings and batch for the planned number of processes, whatever number runs now."""
    processes = experiment.launch.num_processes
    if processes is None:
        args = build_args(experiment)
        return args, args.batch_plan, args.world_size
    wanted = experiment.training_settings
    per_device = wanted.get("per_device_train_batch_size", GRPOConfig.per_device_train_batch_size)
    accumulation = wanted.get("gradient_accumulation_steps", GRPOConfig.gradient_accumulation_steps)
    generations = wanted.get("num_generations", GRPOConfig.num_generations)
    batch = plan_batch(per_device, processes, accumulation, generations)
    return build_args(experiment, completions_per_step=batch.completions_per_step), batch, processes


def _batch_rows(plan: Plan) -> list[tuple[str, str]]:
    batch, args = plan.batch, plan.args
    tokens = batch.completions_per_step * args.max_completion_length
    rollouts = plan.steps * batch.completions_per_step // args.num_iterations
    return [
        ("model", plan.model),
        ("problems", f"{plan.train_rows:,} to train on, {plan.eval_rows:,} held out for evaluation"),
        ("processes", f"{plan.num_processes}"),
        ("prompts per step", f"{batch.prompts_per_step:,}"),
        ("completions per step", f"{batch.completions_per_step:,} ({batch.num_generations} per prompt)"),
        ("steps", f"{plan.steps:,}"),
        ("completions in all", f"{rollouts:,}"),
        (
            "completion tokens",
            f"at most {tokens:,} per step, {rollouts * args.max_completion_length:,} in all",
        ),
        ("output_dir", str(args.output_dir)),
    ]


def _memory_rows(experiment: Experiment, plan: Plan) -> list[tuple[str, str]]:
    if plan.size is None:
        return [
            ("memory", f"unknown: the configuration of {plan.model} is not here, and its name tells no size")
        ]
    use_peft = experiment.model.use_peft
    parts = estimate.memory_gib(plan.size, plan.args, use_peft)
    trained = plan.size.num_adapter_parameters if use_peft else plan.size.num_parameters
    detail = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    missing = (
        "" if "activations" in parts else "; without activations, since only the model's name is known here"
    )
    rows = [
        ("parameters", f"{plan.size.num_parameters:,}, of which {trained:,} are trained"),
        ("memory estimate", f"{sum(parts.values()):.2f} GiB per process ({detail}{missing})"),
    ]
    if plan.args.use_vllm and plan.args.vllm_mode == "colocate":
        rows.append(("vLLM", f"takes {plan.args.vllm_gpu_memory_utilization:.0%} of the same GPU on top"))
    return rows
