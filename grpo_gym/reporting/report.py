"""The report of a run: one HTML file that needs nothing else.

Everything a model wrote travels as base64 of gzipped JSON and reaches the page as text, never as markup; a
content security policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from grpo_gym import __version__
from grpo_gym.reporting.charts import training_charts
from grpo_gym.reporting.completions import COMPLETIONS_DIR
from grpo_gym.reporting.eval_results import Evaluation, evaluation_view, read_evaluations, read_gain
from grpo_gym.reporting.facts import RunDescription, describe_run
from grpo_gym.reporting.packed_completions import PackedCompletions, encode, pack_completions
from grpo_gym.reporting.run_log import LOG_FILE, RunLog, read_log

REPORT_FILE = "report.html"
MAX_COMPLETIONS = 100_000
_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("charts.js", "completions.js", "browser.js", "main.js")


@dataclass(slots=True)
class Run:
    """What the folder of a run holds."""

    folder: Path
    log: RunLog
    evaluations: list[Evaluation] = field(default_factory=list)
    gain: tuple[float, float] | None = None
    completions: PackedCompletions = field(default_factory=PackedCompletions)
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)


def write_report(
    output_dir: str | Path, out: str | Path | None = None, max_completions: int = MAX_COMPLETIONS
) -> tuple[Path, Run]:
    """Write the report of a run, finished or not; returns the file and what was read.

    Args:
        output_dir: the folder of the run.
        out: the file to write; `report.html` in the folder when None.
        max_completions: at most so many are carried, in whole groups spread evenly over the run.

    Raises:
        ValueError: no folder, no run in it, or a file in it that cannot be read.
        OSError: the file cannot be written.
    """
    run = read_run(Path(output_dir), max_completions)
    path = Path(out) if out is not None else run.folder / REPORT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(run), encoding="utf-8")
    return path, run


def read_run(output_dir: Path, max_completions: int = MAX_COMPLETIONS) -> Run:
    """Read the folder of a run; see `write_report`."""
    if max_completions < 0:
        raise ValueError(f"max_completions must be 0 or more, not {max_completions}.")
    if not output_dir.is_dir():
        raise ValueError(f"{output_dir} is not a folder; give the output_dir of a training run.")
    log = read_log(output_dir)
    run = Run(
        folder=output_dir,
        log=log,
        evaluations=read_evaluations(output_dir, log),
        completions=pack_completions(output_dir, log, max_completions),
    )
    if not (log.entries or run.evaluations or run.completions.total):
        raise ValueError(
            f"{output_dir} holds no training run: it has no {LOG_FILE}, trainer_state.json, checkpoint-*/, "
            f"{COMPLETIONS_DIR}/ or eval_results/ with anything in it."
        )
    run.gain = read_gain(output_dir, run.evaluations)
    run.config_text, run.config = _read_config(output_dir / "config.yaml")
    return run


def render(run: Run) -> str:
    """The page."""
    description: RunDescription = describe_run(
        run.folder, run.log, run.evaluations, run.completions, run.config, run.gain
    )
    charts = training_charts(run.log, run.completions.reward_range)
    evaluation = evaluation_view(run.evaluations)
    data = {
        "charts": charts,
        "evaluation": evaluation,
        "logged": [step for step, _ in run.log.points("reward")],
        "completions": run.completions.columns(),
    }
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = page_script()
    return _environment().get_template("report.html.j2").render(
        run=description,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup(style),
        style_hash=_source_hash(style),
        script=Markup(script),
        script_hash=_source_hash(script),
        has_evaluation=bool(evaluation["charts"]),
        has_charts=bool(charts),
        has_completions=bool(run.completions.rows.get("group")),
        config=run.config_text,
        data=encode(data),
        chunks=run.completions.chunks,
    )  # fmt: skip


def page_script() -> str:
    """The page's JavaScript, in one scope of its own."""
    parts = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source_hash(source: str) -> str:
    """What a content security policy calls an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        return "", {}
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    return text, values if isinstance(values, dict) else {}
