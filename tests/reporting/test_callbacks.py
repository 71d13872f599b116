"""What a real run leaves for TensorBoard and for the report, while it runs."""

import json

import pytest
import verifiers as vf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.reporting.report import read_run, render
from grpo_gym.reporting.run_log import read_log
from grpo_gym.reporting.tensorboard import samples_text
from grpo_gym.rollouts.types import Rollout, RolloutGroup

ANIMALS = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}


class ReadsTheLog(TrainerCallback):
    """What a report would find after every step of the run."""

    def __init__(self, folder):
        self.folder = folder
        self.last_steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.last_steps.append(read_log(self.folder).last_step)


def train(folder, resume=None, callbacks=None, **kwargs):
    gym = [{"name": "leg_counting", "weight": 1.0, "config": ANIMALS}]
    args = GRPOConfig(**{
        "output_dir": str(folder), "report_to": "none", "per_device_train_batch_size": 16, "num_generations": 8,
        "max_completion_length": 48, "max_steps": 3, "learning_rate": 2e-4, "eval_on_start": True,
        "eval_num_problems": 4, "disable_tqdm": True, "num_completions_to_print": 0, "save_strategy": "no",
        "seed": 0, "use_cpu": True, **kwargs,
    })  # fmt: skip
    env = vf.ReasoningGymEnv(gym=gym, num_train_examples=32, num_eval_examples=8)
    trainer = GRPOTrainer("tiny", env, args, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    reader = ReadsTheLog(folder)
    return folder, train(folder, report_to="tensorboard", callbacks=[reader]), reader


@pytest.fixture(scope="module")
def events(finished):
    (folder,) = {path.parent for path in finished[0].rglob("events.out.tfevents*")}
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0, "tensors": 0, "scalars": 0})
    return accumulator.Reload()


def test_tensorboard_has_scalars_histograms_and_texts_of_every_logged_step(events):
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2, 3]
    for name in ("reward", "completion_length", "advantage"):
        assert [event.step for event in events.Histograms(f"rollouts/{name}")] == [1, 2, 3]
    assert [event.step for event in events.Tensors("completions/text_summary")] == [1, 2, 3]


def test_tensorboards_histograms_are_those_of_the_rollouts(events, finished):
    batch = finished[1].step_batch
    last = events.Histograms("rollouts/reward")[-1].histogram_value
    assert last.num == 16
    assert last.sum == pytest.approx(float(batch.rewards.sum()), abs=1e-4)
    advantages = events.Histograms("rollouts/advantage")[-1].histogram_value
    assert advantages.max == pytest.approx(float(batch.advantages.max()), abs=1e-4)
    lengths = events.Histograms("rollouts/completion_length")[-1].histogram_value
    assert lengths.sum == sum(len(rollout.completion_ids) for rollout in batch.rollouts)


def test_tensorboards_text_can_be_read(events, finished):
    text = events.Tensors("completions/text_summary")[-1].tensor_proto.string_val[0].decode()
    group = finished[1].last_groups.groups[0]
    assert f"### {group.task}" in text
    assert group.prompt_text.splitlines()[-1] in text
    assert "**reward " in text


def test_texts_cannot_act():
    rollout = Rollout([1], [2], [0.0], [1], 1.0, completion_text="```\n<script>alert(1)</script>\n# heading")
    text = samples_text([RolloutGroup(0, "task", "a\n  b", "`4`", [rollout])])
    assert "    ```\n    <script>alert(1)</script>\n    # heading" in text
    assert "    a\n      b" in text
    assert "expected: `'4'`" in text


def test_the_log_is_on_disk_while_the_run_goes_on(finished):
    folder, trainer, reader = finished
    assert reader.last_steps == [0, 1, 2]  # the log of a step is written just after its end
    log = read_log(folder)
    assert log.entries == json.loads(json.dumps(trainer.state.log_history))
    assert (log.first_step, log.max_steps) == (0, 3)


def test_a_real_run_has_a_report(finished):
    run = read_run(finished[0])
    assert len(run.completions.rows["group"]) == 48
    assert [evaluation.step for evaluation in run.evaluations] == [0, 3]
    html = render(run)
    assert "Held-out accuracy" in html
    assert 'class="notice">The run' not in html


def test_without_tensorboard_nothing_is_written_for_it(tmp_path):
    train(tmp_path, max_steps=1, eval_on_start=False)
    assert not list(tmp_path.rglob("events.out.tfevents*"))
    assert read_log(tmp_path).last_step == 1


def test_a_resumed_run_has_every_step_once(tmp_path):
    train(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, eval_on_start=False)
    train(tmp_path, resume=str(tmp_path / "checkpoint-2"), max_steps=4, eval_on_start=False)
    log = read_log(tmp_path)
    assert log.first_step == 2
    assert [step for step, _ in log.points("loss")] == [1, 2, 3, 4]
    assert [entry["step"] for entry in log.entries if "loss" in entry] == [1, 2, 3, 4]
    assert read_run(tmp_path).completions.total == 64
