from types import SimpleNamespace

import pytest
import torch

from grpo_gym.training.advantages import group_advantages
from grpo_gym.training.losses import (
    LOSS_TYPES,
    importance_ratio,
    kl_k3,
    kl_penalty,
    policy_loss,
    resolve_epsilon_high,
    token_weights,
)
from grpo_gym.training.metrics import Reduction
from grpo_gym.training.mismatch import mismatch_weights
from tests.training.trl_oracle import MAX_COMPLETION_LENGTH, OracleResult, random_step, trl_step

pytestmark = pytest.mark.usefixtures("double_precision")

SETTINGS = {
    "plain": {},
    "on_policy": {"given_old_logprobs": False},
    "clip_higher": {"epsilon": 0.1, "epsilon_high": 0.4},
    "two_sided": {"delta": 1.5},
    "kl": {"beta": 0.3},
    "kl_unweighted": {"beta": 0.3, "use_bias_correction_kl": False},
    "token_truncate": {"mismatch_cap": 1.2},
    "token_mask": {"mismatch_cap": 1.2, "mismatch_mode": "token_mask"},
    "mask_truncated": {"mask_truncated_completions": True},
    "everything": {
        "epsilon": 0.15,
        "epsilon_high": 0.3,
        "delta": 1.6,
        "beta": 0.1,
        "mismatch_cap": 1.3,
        "mask_truncated_completions": True,
    },
}


def adapted(loss_type, settings):
    """The settings as they apply to a loss type: cispo caps the ratio itself and has no delta."""
    settings = dict(settings)
    if loss_type == "cispo":
        settings.pop("delta", None)
        settings["epsilon_high"] = 1.0 + settings.get("epsilon_high", 0.2)
    return settings


def trl_settings(loss_type, settings):
    if loss_type == "gspo":
        return {**settings, "loss_type": "grpo", "importance_sampling_level": "sequence"}
    return {**settings, "loss_type": loss_type}


def our_step(step, loss_type, micro_batches, batch_index=None, **settings) -> OracleResult:
    """The summed loss of a step, computed on flat tokens; `micro_batches` are lists of rollout numbers."""
    masks = step.masks(settings.get("mask_truncated_completions", False))
    lengths = torch.tensor([int(m.sum()) for m in masks])
    weights = token_weights(loss_type, lengths, MAX_COMPLETION_LENGTH, batch_index=batch_index)
    advantages = group_advantages(step.rewards, step.group_index)
    leaves = [p.clone().requires_grad_() for p in step.logprobs]
    metrics = Reduction()
    total = torch.zeros(())
    for ids in micro_batches:
        total = total + _micro_batch_loss(
            step, loss_type, ids, leaves, masks, advantages, weights, metrics, settings
        )
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    reduced = metrics.reduce(SimpleNamespace(num_processes=1))
    return OracleResult(float(total.detach()), list(gradients), advantages, reduced)


def _micro_batch_loss(step, loss_type, ids, leaves, masks, advantages, weights, metrics, settings):
    logprobs = torch.cat([leaves[i] for i in ids])
    old = torch.cat([step.old_logprobs[i] for i in ids])
    if not settings.get("given_old_logprobs", True):
        old = logprobs.detach()
    mask = torch.cat([masks[i] for i in ids])
    index = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([step.lengths[i] for i in ids]))
    place = (mask, index, len(ids))
    limits = {key: settings[key] for key in ("epsilon", "epsilon_high", "delta") if key in settings}
    per_token, statistics = policy_loss(loss_type, logprobs, old, advantages[ids][index], *place, **limits)
    statistics.add_to(metrics)
    if "mismatch_cap" in settings:
        sampler = torch.cat([step.sampler_logprobs[i] for i in ids])
        mode = settings.get("mismatch_mode", "token_truncate")
        correction, statistics = mismatch_weights(mode, old, sampler, *place, cap=settings["mismatch_cap"])
        statistics.add_to(metrics)
        per_token = per_token * correction
    if "beta" in settings:
        ref = torch.cat([step.ref_logprobs[i] for i in ids])
        ratio = importance_ratio(loss_type, logprobs, old, *place)
        weighted = settings.get("use_bias_correction_kl", True)
        kl = kl_penalty(logprobs, ref, ratio) if weighted else kl_k3(logprobs, ref)
        per_token = per_token + settings["beta"] * kl * mask
    return (weights[ids][index] * per_token).sum()


def assert_same(ours, theirs, atol):
    assert ours.loss == pytest.approx(theirs.loss, rel=0, abs=atol)
    for mine, other in zip(ours.gradients, theirs.gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_are_trls(loss_type, name, seed):
    step = random_step(seed)
    settings = adapted(loss_type, SETTINGS[name])
    local_batches = torch.arange(step.num_rollouts).view(4, -1)  # what TRL trains on at once
    batch_index = torch.arange(step.num_rollouts) // local_batches.shape[1]
    theirs = trl_step(step, num_micro_batches=4, **trl_settings(loss_type, settings))
    # Packed otherwise than TRL does, with all rollouts in another order.
    packs = [[15, 3, 4], [0, 1], [14, 2, 5, 9, 10, 11, 12, 13], [8], [6, 7]]
    ours = our_step(step, loss_type, packs, batch_index, **settings)
    assert_same(ours, theirs, atol=1e-10)
    assert max(float(g.abs().max()) for g in theirs.gradients) > 1e-3


@pytest.mark.parametrize("name", ["plain", "clip_higher", "two_sided", "token_truncate"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_metrics_are_trls(loss_type, name):
    step = random_step(7)
    settings = adapted(loss_type, SETTINGS[name])
    theirs = trl_step(step, **trl_settings(loss_type, settings)).metrics
    ours = our_step(step, loss_type, [[1, 0, 5], [4, 3, 2, 6, 7, 8], list(range(9, 16))], **settings).metrics
    ours.pop("mismatch_kl", None)
    assert any("clip" in metric and value > 0 for metric, value in ours.items())
    for metric, value in ours.items():
        assert value == pytest.approx(theirs[metric][0], abs=1e-6), metric


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_step_may_be_split_anyhow(loss_type, seed):
    step = random_step(seed)
    settings = adapted(loss_type, SETTINGS["everything"])
    whole = our_step(step, loss_type, [list(range(16))], **settings)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed)).tolist()
    for cuts in ([1, 5, 6], [8], list(range(1, 16))):
        packs = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 16], strict=True)]
        split = our_step(step, loss_type, packs, **settings)
        assert_same(split, whole, atol=1e-12)
        assert split.metrics == pytest.approx(whole.metrics, rel=0, abs=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_gradient_is_reinforce_with_advantage(loss_type):
    step = random_step(11)
    ours = our_step(step, loss_type, [list(range(16))], given_old_logprobs=False)
    lengths = torch.tensor([int(m.sum()) for m in step.environment_mask])
    weights = token_weights(loss_type, lengths, MAX_COMPLETION_LENGTH)
    for i, gradient in enumerate(ours.gradients):
        torch.testing.assert_close(gradient, -weights[i] * ours.advantages[i] * step.environment_mask[i])


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), -1e4])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_log_probs_of_tokens_outside_the_mask_do_not_matter(loss_type, garbage):
    def run(value):
        logprobs = torch.tensor([-1.0, value, -0.5, -2.0], requires_grad=True)
        old = torch.tensor([-1.1, -3.0, -0.7, value])
        mask, index = torch.tensor([1, 0, 1, 0]), torch.tensor([0, 0, 1, 1])
        loss, _ = policy_loss(loss_type, logprobs, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), mask, index, 2)
        return loss.detach(), torch.autograd.grad(loss.sum(), logprobs)[0]

    for ours, expected in zip(run(garbage), run(-0.3), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
        assert ours[[1, 3]].tolist() == [0.0, 0.0]


def gradient_at(loss_type, ratio, advantage, **limits):
    """d loss / d log-prob of one token whose policy moved by `ratio`."""
    logprob = torch.tensor([-1.0], requires_grad=True)
    old = logprob.detach() - torch.tensor([ratio]).log()
    loss, _ = policy_loss(
        loss_type, logprob, old, torch.tensor([advantage]), torch.ones(1), torch.zeros(1).long(), 1, **limits
    )
    return float(torch.autograd.grad(loss.sum(), logprob)[0])


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo"])
def test_clipping_stops_the_gradient_where_the_policy_went_far_enough(loss_type):
    limits = {"epsilon": 0.2, "epsilon_high": 0.3}
    assert gradient_at(loss_type, 1.31, 1.0, **limits) == 0.0
    assert gradient_at(loss_type, 1.29, 1.0, **limits) == pytest.approx(-1.29)
    assert gradient_at(loss_type, 0.79, -1.0, **limits) == 0.0
    assert gradient_at(loss_type, 0.81, -1.0, **limits) == pytest.approx(0.81)
    assert gradient_at(loss_type, 9.0, -1.0, **limits) == pytest.approx(9.0)
    assert gradient_at(loss_type, 9.0, -1.0, delta=4.0, **limits) == 0.0


def test_cispo_never_drops_a_token_and_caps_its_weight():
    assert gradient_at("cispo", 1.5, 1.0, epsilon_high=5.0) == pytest.approx(-1.5)
    assert gradient_at("cispo", 9.0, 1.0, epsilon_high=5.0) == pytest.approx(-5.0)
    assert gradient_at("cispo", 0.1, -1.0, epsilon_high=5.0) == pytest.approx(0.1)
    assert gradient_at("cispo", 9.0, 1.0) == pytest.approx(-5.0)  # the default cap


def test_gspo_ratio_is_the_geometric_mean_over_trained_tokens():
    logprobs, old = torch.tensor([-1.0, -2.0, -9.0, -0.5]), torch.tensor([-1.4, -1.8, -1.0, -0.2])
    mask, index = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 0, 1])
    ratio = importance_ratio("gspo", logprobs, old, mask, index, 2)
    torch.testing.assert_close(ratio, torch.tensor([0.1, 0.1, 0.0, -0.3]).exp())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_float32_stays_float32_and_a_micro_batch_may_be_empty(loss_type):
    one = torch.ones(3, dtype=torch.float32)
    index = torch.zeros(3, dtype=torch.long)
    assert policy_loss(loss_type, -one, -one, one, one, index, 1)[0].dtype == torch.float32
    loss, statistics = policy_loss(loss_type, one[:0], one[:0], one[:0], one[:0], index[:0], 0)
    assert loss.shape == (0,)
    assert all(int(count) == 0 for _, count in statistics.means.values())


def test_token_weights_are_the_definitions():
    lengths = torch.tensor([2, 0, 6])  # the second one was truncated, and masked

    def weights(loss_type, **options):
        return token_weights(loss_type, lengths, 10, **options).tolist()

    assert weights("grpo") == weights("gspo") == pytest.approx([1 / 6, 0, 1 / 18])
    assert weights("dr_grpo") == pytest.approx([1 / 30, 0, 1 / 30])
    assert weights("dapo") == weights("cispo") == weights("bnpo") == pytest.approx([1 / 8, 0, 1 / 8])
    assert weights("bnpo", batch_index=torch.tensor([0, 0, 5])) == pytest.approx([1 / 4, 0, 1 / 12])
    assert weights("bnpo", batch_index=torch.tensor([0, 1, 2])) == weights("grpo")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_rollout_that_failed_is_as_if_it_had_never_been(loss_type):
    lengths, batch = torch.tensor([3, 5, 2, 4]), torch.tensor([0, 0, 1, 2])
    kept = torch.tensor([True, False, True, False])
    weights = token_weights(loss_type, lengths, 8, valid=kept, batch_index=batch)
    alone = token_weights(loss_type, lengths[kept], 8, batch_index=batch[kept])
    assert weights[kept].tolist() == alone.tolist()
    assert weights[~kept].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_step_without_trained_tokens_weighs_nothing(loss_type):
    assert token_weights(loss_type, torch.zeros(2).long(), 8).tolist() == [0.0, 0.0]
    none_valid = token_weights(loss_type, torch.tensor([3, 4]), 8, valid=torch.tensor([False, False]))
    assert none_valid.tolist() == [0.0, 0.0]


def two_policies(seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, generator=rng)
    return logits[0].requires_grad_(), logits[1].log_softmax(0)


@pytest.mark.parametrize("seed", range(3))
def test_k3_has_the_kl_as_its_mean_and_is_never_negative(seed):
    logits, ref = two_policies(seed)
    logprobs = logits.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - ref)).sum()
    estimates = kl_k3(logprobs, ref)
    torch.testing.assert_close((logprobs.exp() * estimates).sum(), exact)
    assert estimates.min() >= 0
    assert kl_k3(logprobs, logprobs).eq(0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_weighted_k3_has_the_gradient_of_the_kl_and_k3_alone_has_not(seed):
    logits, ref = two_policies(seed)
    logprobs = logits.log_softmax(0)
    chance = logprobs.detach().exp()  # tokens are drawn from the policy; the draw has no gradient
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), logits, retain_graph=True)
    ratio = (logprobs - logprobs.detach()).exp()
    weighted = (chance * kl_penalty(logprobs, ref, ratio)).sum()
    (gradient,) = torch.autograd.grad(weighted, logits, retain_graph=True)
    torch.testing.assert_close(gradient, exact)
    (biased,) = torch.autograd.grad((chance * kl_k3(logprobs, ref)).sum(), logits)
    assert (biased - exact).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("drgrpo", 0.2), "is not one of grpo, bnpo, dr_grpo, dapo, gspo, cispo .did you mean 'dr_grpo'"),
        (("ppo", 0.2), "loss_type='ppo' is not one of grpo"),
        (("grpo", 1.2), "use 0 <= epsilon < 1"),
        (("grpo", 0.2, -0.1), "epsilon_high >= 0"),
        (("dapo", 0.2, 0.28, 1.2), "must be above 1 . epsilon_high = 1.28"),
        (("cispo", 0.2, 0.28), "caps the ratio itself"),
        (("cispo", 0.2, 5.0, 6.0), "delta=6.0 has no effect"),
    ],
)
def test_settings_that_cannot_be_meant_are_named_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve_epsilon_high(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call", [lambda: token_weights("dappo", torch.ones(1), 1), lambda: gradient_at("dappo", 1, 1)]
)
def test_every_function_refuses_an_unknown_loss(call):
    with pytest.raises(ValueError, match="did you mean 'dapo'"):
        call()


def test_epsilon_high_defaults_to_epsilon():
    assert resolve_epsilon_high("grpo", 0.15) == 0.15
    assert resolve_epsilon_high("grpo", 0.15, 0.3) == 0.3
