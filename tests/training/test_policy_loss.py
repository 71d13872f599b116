"""How the rollouts of a step become micro-batches."""

import logging
import random

import pytest

from grpo_gym import GRPOConfig
from grpo_gym.rollouts.types import Rollout, RolloutGroup
from grpo_gym.training import packing
from grpo_gym.training import policy_loss as policy_loss_module
from grpo_gym.training.metrics import Reduction
from grpo_gym.training.policy_loss import PolicyLoss
from grpo_gym.training.step_batch import make_step_batch
from tests.training.test_logprobs import VOCABULARY, make_model


def make_loss(model, tmp_path, **settings) -> PolicyLoss:
    args = GRPOConfig(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        per_device_train_batch_size=4,
        num_generations=4,
        **settings,
    )
    return PolicyLoss(model, None, args)


def make_step(*completion_lengths: list[int]):
    """A group with a prompt of six tokens for each list of lengths."""
    rng = random.Random(0)

    def tokens(length):
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    groups = []
    for index, lengths in enumerate(completion_lengths):
        prompt = tokens(6)
        rollouts = [
            Rollout(prompt, tokens(n), [-4.0] * n, [1] * n, reward=float(i)) for i, n in enumerate(lengths)
        ]
        groups.append(RolloutGroup(index, "task", "", "", rollouts))
    return make_step_batch(groups, "dapo", "group", 100, False, 4)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (
            "gpt_neox",
            "right-padded, each with its own copy of the prompt: packing is not tested for gpt_neox",
        ),
        ("mistral", "once per completion, not once per group: mistral attends through a sliding window"),
    ],
)
def test_what_a_model_costs_is_said_once(model_type, message, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make_loss(make_model(model_type, sliding_window=4), tmp_path)
    assert caplog.text.count(message) == 1


def test_a_padded_forward_stays_within_the_budget(tmp_path):
    model = make_model("gpt_neox")
    loss = make_loss(model, tmp_path, max_tokens_per_micro_batch=120)
    batch = make_step([90, 3, 4, 5], *([5, 4, 6, 3] for _ in range(5)))
    shapes = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple((*args, kwargs.get("input_ids"))[0].shape)),
        with_kwargs=True,
    )
    packs = loss.micro_batches(batch, 0, 1)
    for pack in packs:
        loss(model, pack, batch, Reduction())
    shapes = shapes[-len(packs) :]  # the first call compares two tokens with the model's own logits
    assert sum(rows for rows, _ in shapes) == 24
    assert all(rows * length <= 120 for rows, length in shapes), shapes


def test_a_rank_lays_out_its_own_share_only(tmp_path, monkeypatch):
    loss = make_loss(make_model(), tmp_path, max_tokens_per_micro_batch=40)
    batch = make_step(*([5 + i, 4, 6 + i, 3] for i in range(6)))
    laid_out = []
    monkeypatch.setattr(
        policy_loss_module, "lay_out", lambda *args: laid_out.append(args) or packing.lay_out(*args)
    )
    shares = [loss.micro_batches(batch, rank, 3) for rank in range(3)]
    assert len({len(packs) for packs in shares}) == 1, "every rank runs the same number of passes"
    scored = [rollout_id for packs in shares for pack in packs for rollout_id in pack.rollout_ids]
    assert sorted(scored) == list(range(24))
    assert len(laid_out) == sum(bool(pack.rollout_ids) for packs in shares for pack in packs)
