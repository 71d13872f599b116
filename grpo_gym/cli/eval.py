"""`grpo-gym eval --config FILE [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_gym.cli import EXIT_FAILED, fail, files_and_overrides

if TYPE_CHECKING:
    from grpo_gym.evaluation.config import EvalConfig
    from grpo_gym.evaluation.run import Outcome

_EPILOG = """\
examples:
  grpo-gym eval --config configs/eval/tiny_leg_counting.yaml
  grpo-gym eval --config configs/eval/tiny_leg_counting.yaml model=outputs/tiny_leg_counting repeats=4
  grpo-gym eval --config configs/eval/reasoning_gym.yaml model=Qwen/Qwen2.5-3B-Instruct backend=server
  grpo-gym eval --config configs/eval/reasoning_gym.yaml model=NAME base_url=https://HOST/v1 api_key_var=API_KEY

Run again after it was stopped, it goes on where it was. Exit code: 0 done; 1 completions failed (run it again
for those that were not answered), 2 nothing was started.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--config", metavar="FILE", help="the evaluation, a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, such as repeats=4"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the settings and the number of completions"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and write the results."""
    from dotenv import load_dotenv

    from grpo_gym.evaluation.config import load_evaluation
    from grpo_gym.evaluation.run import EvaluationStopped, run_evaluation

    load_dotenv(Path.cwd() / ".env")
    try:
        path, overrides = _file_and_overrides(args)
        config = load_evaluation(path, overrides)
        if args.dry_run:
            print(_plan(config))
            return 0
        outcome = run_evaluation(config)
    except EvaluationStopped as error:
        return fail(error, EXIT_FAILED)
    except (ValueError, OSError) as error:
        # OSError: a model, file or server that is not there.
        return fail(error)
    return _finish(config, outcome)


def _file_and_overrides(args: argparse.Namespace) -> tuple[str, list[str]]:
    found, overrides = files_and_overrides(args.overrides)
    files = [*([args.config] if args.config else []), *found]
    if len(files) != 1:
        raise ValueError(
            f"give one evaluation (--config FILE), not {len(files)}; overrides are written key=value."
        )
    return files[0], overrides


def _plan(config: EvalConfig) -> str:
    import yaml

    sizes = [
        e.size or config.default_size for members in config.categories.values() for e in members.values()
    ]
    resolved = yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=110)
    return (
        f"{resolved}\n{len(sizes)} datasets, at most {sum(sizes)} problems x {config.repeats} = "
        f"{sum(sizes) * config.repeats} completions of at most {config.max_tokens} tokens"
    )


def _finish(config: EvalConfig, outcome: Outcome) -> int:
    from grpo_gym.evaluation.checkpoint import model_label
    from grpo_gym.evaluation.report import percent, write_report
    from grpo_gym.evaluation.results import read_results

    problems = read_results(outcome.folder).problems
    categories = {problem.task: problem.category or "" for problem in problems}
    write_report(outcome.folder, config, model_label(config), outcome.summary, categories)
    for name, row in [*outcome.summary["by_task"].items(), ("all", outcome.summary["all"])]:
        print(f"{name:<32} {percent(row['accuracy']):<24} {row['num_samples']} completions")
    print(f"{outcome.num_sampled} completions sampled, {outcome.num_reused} were there already")
    print(f"results: {outcome.folder}")
    if outcome.failures:
        return fail(
            f"{len(outcome.failures)} completions failed and are left out of the rates, the first because: "
            f"{outcome.failures[0]}; run the same command again for those that were not answered.",
            EXIT_FAILED,
        )
    return 0
