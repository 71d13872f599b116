"""Draws reward and held-out accuracy of finished runs.

python tools/plot_learning_curve.py docs/learning_curve.png outputs/seed-0 outputs/seed-1 outputs/seed-2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(picture: str, runs: list[str]) -> None:
    """Plot every run's `trainer_state.json` into one picture."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for number, run in enumerate(runs):
        history = json.loads((Path(run) / "trainer_state.json").read_text())["log_history"]
        steps = [entry for entry in history if "reward" in entry]
        evaluations = [entry for entry in history if "eval_accuracy" in entry]
        color = f"C{number}"
        label = Path(run).name
        axes.plot(
            [e["step"] for e in steps], [e["reward"] for e in steps], color=color, alpha=0.7, label=label
        )
        axes.plot(
            [e["step"] for e in evaluations], [e["eval_accuracy"] for e in evaluations], "o", color=color
        )
    axes.set(xlabel="optimizer step", ylabel="mean reward (line), held-out accuracy (dots)", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python tools/plot_learning_curve.py PICTURE.png OUTPUT_DIR [OUTPUT_DIR ...]")
    main(sys.argv[1], sys.argv[2:])
