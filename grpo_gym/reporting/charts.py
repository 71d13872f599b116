"""Which metrics of a log the report draws, and how: plain values that its page turns into SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grpo_gym.reporting.run_log import RunLog

MAX_POINTS = 1000
"""Points of one line; longer ones are averaged in blocks."""

Point = tuple[int, float]


def training_charts(log: RunLog, reward_range: tuple[float, float] | None = None) -> list[dict[str, Any]]:
    """The charts whose metrics the log has, in reading order.

    Args:
        log: what the run has logged.
        reward_range: smallest and largest reward of any completion, when known: the reward band ends there.
    """
    made = (
        _reward(log, reward_range),
        _scores(log),
        _lines(log, "Informative groups", "informative", "percent", {"informative_fraction": "share"},
               "Prompts whose completions got different rewards. The others teach nothing."),
        _length(log),
        _lines(log, "Cut off", "clipped", "percent", {"completions/clipped_ratio": "share"},
               "Completions that reached the length limit."),
        _lines(log, "Entropy", "entropy", "number", {"entropy": "nats per token"},
               "How undecided the policy is. Near 0, it samples the same text again and again."),
        _kl(log),
        _time(log),
        _lines(log, "Throughput", "throughput", "number", {"tokens_per_second": "tokens per second"},
               "Completion tokens per second of wall time."),
        _lines(log, "Loss", "loss", "number", {"loss": "loss"},
               "Its size says little in GRPO: advantages average to 0."),
        _lines(log, "Gradient norm", "grad_norm", "number", {"grad_norm": "norm"}, "Before clipping."),
        _lines(log, "Learning rate", "learning_rate", "number", {"learning_rate": "learning rate"}, ""),
        _failures(log),
    )  # fmt: skip
    return [chart for chart in made if chart is not None]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: means of blocks of equal size, each at its last step."""
    if len(points) <= limit:
        return list(points)
    size = -(-len(points) // limit)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(block[-1][0], sum(value for _, value in block) / len(block)) for block in blocks]


def line(name: str, points: Sequence[Point], low: Sequence[Point] = (), high: Sequence[Point] = ()) -> dict:
    """One line; with `low` and `high`, points at the same steps, it has a band."""
    kept = thin(points)
    band = {}
    if low and high:
        band = {"low": _values(thin(low)), "high": _values(thin(high))}
    return {"name": name, "x": [step for step, _ in kept], "y": _values(kept), **band}


def chart(
    title: str, key: str, unit: str, lines: Sequence[dict], note: str = "", kind: str = "line"
) -> dict[str, Any] | None:
    """A chart of the lines that have points; None when there are none."""
    kept = [each for each in lines if each["x"]]
    return (
        {"title": title, "key": key, "unit": unit, "note": note, "kind": kind, "lines": kept}
        if kept
        else None
    )


def _lines(
    log: RunLog, title: str, key: str, unit: str, metrics: dict[str, str], note: str
) -> dict[str, Any] | None:
    return chart(title, key, unit, [line(name, log.points(m)) for m, name in metrics.items()], note)


def _reward(log: RunLog, reward_range: tuple[float, float] | None) -> dict[str, Any] | None:
    low, high = reward_range or (-float("inf"), float("inf"))
    return chart(
        "Reward",
        "reward",
        "number",
        [_banded(log, "mean", "reward", "reward_std", lambda v, s: (max(v - s, low), min(v + s, high)))],
        "Mean over the completions of a step. Band: one standard deviation either way, within what occurs.",
    )


def _banded(
    log: RunLog, name: str, metric: str, spread: str, edges: Callable[[float, float], tuple[float, float]]
) -> dict[str, Any]:
    """A line with a band, where both metrics were logged at the same steps."""
    values, widths = log.points(metric), dict(log.points(spread))
    if not all(step in widths for step, _ in values):
        return line(name, values)
    bounds = [(step, edges(value, widths[step])) for step, value in values]
    return line(name, values, [(s, low) for s, (low, _) in bounds], [(s, high) for s, (_, high) in bounds])


def _kl(log: RunLog) -> dict[str, Any] | None:
    """The axis reaches at least 0.001: below that, what is seen is rounding."""
    metrics = {"kl": "to the reference model", "mismatch_kl": "sampler to trainer"}
    note = "Sampler to trainer should stay near 0: both are meant to be the same policy."
    made = _lines(log, "KL divergence", "kl", "number", metrics, note)
    return {**made, "least": 0.001} if made else None


def _scores(log: RunLog) -> dict[str, Any] | None:
    """Each reward function and metric by itself; nothing when there is only one, which is the reward."""
    names = {
        n.removeprefix("rewards/").removesuffix("/mean"): log.points(n) for n in log.names() if _is_score(n)
    }
    if all(value == 1 for _, value in names.get("num_turns", ())):
        names.pop("num_turns", None)  # every conversation has one turn: nothing to see
    if len(names) < 2:
        return None
    lines = [line(name, points) for name, points in names.items()]
    return chart(
        "Scores", "scores", "number", lines, "Each reward function and metric by itself, before weighting."
    )


def _is_score(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


def _length(log: RunLog) -> dict[str, Any] | None:
    mean = log.points("completions/mean_length")
    low, high = log.points("completions/min_length"), log.points("completions/max_length")
    same_steps = [s for s, _ in mean] == [s for s, _ in low] == [s for s, _ in high]
    return chart(
        "Completion length",
        "length",
        "tokens",
        [line("mean", mean, low if same_steps else (), high if same_steps else ())],
        "Tokens. Band: shortest to longest.",
    )


def _time(log: RunLog) -> dict[str, Any] | None:
    parts = {"time/rollout": "rollouts", "time/train": "training", "time/sync": "weight sync"}
    lines = [line(name, log.points(metric)) for metric, name in parts.items()]
    steps = {tuple(each["x"]) for each in lines if each["x"]}
    kind = "stack" if len(steps) == 1 else "line"
    return chart("Where the time goes", "time", "seconds", lines, "Seconds of an optimizer step.", kind)


def _failures(log: RunLog) -> dict[str, Any] | None:
    """Rollouts left out, by kind; nothing while there were none."""
    prefix = "rollouts/failed/"
    names = [name for name in log.names() if name.startswith(prefix)]
    lines = [line(_failure_label(name.removeprefix(prefix)), log.points(name)) for name in names]
    note = (
        "Completions that could not be generated or scored, by kind and by reward. "
        "They are left out of the training."
    )
    return chart("Failed rollouts", "failed", "number", lines, note)


def _failure_label(name: str) -> str:
    """Of scoring_failed/math_verify "scoring failed: math_verify": rewards keep their names."""
    kind, _, reward = name.partition("/")
    return kind.replace("_", " ") + (f": {reward}" if reward else "")


def _values(points: Sequence[Point]) -> list[float]:
    return [float(f"{value:.6g}") for _, value in points]
