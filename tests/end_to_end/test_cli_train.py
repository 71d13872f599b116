"""`grpo-gym train` on the embedded model: a real run, and the same run again from what it saved."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = ("max_steps=2", "per_device_train_batch_size=8", "num_generations=4", "max_completion_length=24")
QUIET = ("report_to=none", "eval.num_problems=4", "disable_tqdm=true", "use_cpu=true")


def train(*arguments, folder):
    command = [sys.executable, "-m", "grpo_gym.cli", "train", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def test_a_run_and_the_same_run_again(tmp_path):
    experiment = ROOT / "configs/experiments/tiny_leg_counting.yaml"
    first, second = tmp_path / "first", tmp_path / "second"
    done = train(experiment, *SMALL, *QUIET, f"output_dir={first}", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert saved["training"]["max_steps"] == 2
    assert saved["provenance"]["versions"]["torch"]
    assert (saved["model"]["model_name_or_path"], saved["launch"]["num_processes"]) == ("tiny", 1)
    weights = load_file(first / "model.safetensors")
    done = train(first / "config.yaml", "resume_from_checkpoint=true", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # The file of a resumed run is that of the run: it does not go on from a checkpoint that is done.
    assert yaml.safe_load((first / "config.yaml").read_text())["training"] == saved["training"]
    done = train(first / "config.yaml", f"output_dir={second}", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    again = load_file(second / "model.safetensors")
    assert all((weights[name] == again[name]).all() for name in weights)


def test_correctness_and_a_reward_of_the_users_are_logged(tmp_path):
    (tmp_path / "own.py").write_text(
        "from grpo_gym.rewards import BaseReward, register_reward\n"
        "@register_reward('brevity')\n"
        "class Brevity(BaseReward):\n"
        "    def compute(self, prompt, completion, answer, info):\n"
        "        return 1.0 / info['num_completion_tokens']\n"
    )
    (tmp_path / "x.yaml").write_text(
        f"_base_: {ROOT}/configs/experiments/tiny_leg_counting.yaml\n"
        "rewards_module: own.py\n"
        "rewards: [{name: correctness, weight: 0.8}, {name: brevity, weight: 0.2}]\n"
    )
    done = train("x.yaml", *SMALL, *QUIET, "output_dir=run", "save_steps=2", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
    logged = {name for entry in state["log_history"] for name in entry}
    assert any("correctness" in name for name in logged)
    assert any("brevity" in name for name in logged)


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    experiment = ROOT / "configs/experiments/tiny_leg_counting.yaml"
    done = train(experiment, "model_name_or_path=./nowhere", *QUIET, folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "grpo-gym: error:" in done.stderr
