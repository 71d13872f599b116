"""The laptop twin of the mathematics experiment, shortened: accuracy on held-out problems rises."""

from pathlib import Path

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_trainer

FILE = Path(__file__).parents[2] / "configs/experiments/math_tiny.yaml"
SETTINGS = [
    "max_steps=20", "learning_rate=4e-4", "fixed_eval_steps=100", "report_to=none", "num_completions_to_print=0",
    "disable_tqdm=true", "save_strategy=no",
]  # fmt: skip


def test_accuracy_on_held_out_problems_rises(tmp_path):
    trainer = build_trainer(load_experiment(FILE, [*SETTINGS, f"output_dir={tmp_path}"]))
    trained_on = set(trainer.env.get_dataset()["question"])
    assert not trained_on & set(trainer.env.get_eval_dataset()["question"])
    trainer.train()
    before, after = (e for e in trainer.state.log_history if "eval_accuracy" in e)
    assert (before["step"], after["step"]) == (0, 20)
    assert 0.1 < before["eval_accuracy"] < 0.5
    assert after["eval_accuracy"] > before["eval_accuracy"] + 0.08
    steps = [e for e in trainer.state.log_history if "loss" in e]
    assert all(e["rollouts/failed"] == 0 for e in steps)
    assert all("kl" in e and e["sampling/sampling_logp_difference/max"] < 1e-3 for e in steps)
