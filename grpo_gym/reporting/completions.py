"""Every sampled completion, kept as one Parquet file (zstd) per optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from tqdm.auto import tqdm

from grpo_gym.rollouts.types import RolloutGroup

COMPLETIONS_DIR = "completions"


def write_completions(output_dir: str | Path, step: int, groups: Sequence[RolloutGroup]) -> Path:
    """Write one row per rollout to `{output_dir}/completions/step_000123.parquet`."""
    directory = Path(output_dir) / COMPLETIONS_DIR
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step_{step:06d}.parquet"
    rows = [
        {
            "step": step,
            "task": group.task,
            "example_id": group.example_id,
            "prompt": group.prompt_text,
            "answer": group.answer,
            "completion": rollout.completion_text,
            "reward": rollout.reward,
            "metrics": list(rollout.metrics.items()),
            "num_tokens": len(rollout.completion_ids),
            "finish_reason": rollout.finish_reason,
            "policy_version": rollout.policy_version,
            "error": rollout.error,
        }
        for group in groups
        for rollout in group.rollouts
    ]
    unfinished = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), unfinished, compression="zstd")
    unfinished.replace(path)  # whoever reads a run that is still going finds whole files only
    return path


_SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "task": pa.string(),
        "example_id": pa.int64(),
        "prompt": pa.string(),
        "answer": pa.string(),
        "completion": pa.string(),
        "reward": pa.float64(),
        "metrics": pa.map_(pa.string(), pa.float64()),
        "num_tokens": pa.int64(),
        "finish_reason": pa.string(),
        "policy_version": pa.int64(),
        "error": pa.string(),
    }
)


def print_completions(
    groups: Sequence[RolloutGroup], step: int, count: int, console: Console | None = None
) -> None:
    """Show the best and the worst completion of the first groups."""
    console = console or Console()
    for group in list(groups)[:count]:
        rollouts = sorted(group.valid_rollouts, key=lambda r: r.reward or 0.0)
        if not rollouts:
            continue
        text = Text.assemble((group.prompt_text.strip()[-300:] + "\n", "dim"))
        shown = {id(r): r for r in (rollouts[-1], rollouts[0])}.values()
        for rollout in shown:
            text.append(
                f"\nreward {rollout.reward:.2f}  ", style="bold green" if rollout.reward else "bold red"
            )
            text.append(rollout.completion_text.strip()[:600])
        with tqdm.external_write_mode():  # keeps the progress bar on the last line
            console.print(Panel(text, title=f"step {step} - {group.task}", title_align="left"))
