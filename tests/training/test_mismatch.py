import pytest
import torch

from grpo_gym.training.losses import kl_k3
from grpo_gym.training.mismatch import MISMATCH_MODES, mismatch_weights
from tests.training.trl_oracle import random_step, trl_step

pytestmark = pytest.mark.usefixtures("double_precision")

CORRECTING_MODES = [mode for mode in MISMATCH_MODES if mode != "none"]


def constant_drift(lengths, drift):
    """Sequences whose every token differs by `drift` nats between trainer and sampler."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sampler = -torch.rand(len(index), generator=torch.Generator().manual_seed(0)) - 0.1
    return sampler + drift, sampler, torch.ones(len(index)), index, len(lengths)


def random_tokens(seed, scale=0.5):
    rng = torch.Generator().manual_seed(seed)
    sampler = -torch.rand(60, generator=rng)
    old = sampler + scale * torch.randn(60, generator=rng)
    mask = torch.rand(60, generator=rng) > 0.2
    return old, sampler, mask, torch.arange(60) // 12, 5


@pytest.mark.parametrize("mode", MISMATCH_MODES)
def test_nothing_is_corrected_where_sampler_and_trainer_agree(mode):
    weights, statistics = mismatch_weights(mode, *constant_drift([3, 1, 8], 0.0))
    assert weights.eq(1.0).all()
    assert float(statistics.means["mismatch_kl"][0]) == 0.0
    assert float(statistics.maxima["sampling/sampling_logp_difference/max"]) == 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cap", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("mode", CORRECTING_MODES)
def test_no_weight_exceeds_the_cap(mode, cap, seed):
    weights, _ = mismatch_weights(mode, *random_tokens(seed), cap=cap)
    assert weights.max() <= cap
    assert weights.min() >= 0.0


def test_truncation_and_masking_treat_only_what_lies_beyond_the_cap():
    old, sampler, mask, index, n = random_tokens(0)
    ratio = torch.where(mask, (old - sampler).exp(), 1.0)
    beyond = ratio > 1.5
    assert beyond.any()
    truncated, _ = mismatch_weights("token_truncate", old, sampler, mask, index, n, cap=1.5)
    masked, _ = mismatch_weights("token_mask", old, sampler, mask, index, n, cap=1.5)
    torch.testing.assert_close(truncated, torch.where(beyond, 1.5, ratio))
    torch.testing.assert_close(masked, torch.where(beyond, 0.0, ratio))


@pytest.mark.parametrize(("drift", "kept"), [(0.03, 1.0), (-0.03, 1.0), (0.1, 0.0), (-0.1, 0.0)])
def test_a_sequence_is_judged_by_its_tokens_not_by_its_length(drift, kept):
    weights, _ = mismatch_weights("sequence_mask", *constant_drift([1, 10, 1000], drift), cap=1.05)
    assert weights.eq(kept).all()


def test_a_sequence_is_dropped_whole_and_alone():
    old, sampler, mask, index, n = constant_drift([4, 4, 4], 0.0)
    old[4:6] += 1.0
    weights, _ = mismatch_weights("sequence_mask", old, sampler, mask, index, n, cap=1.3)
    assert weights.tolist() == [1.0] * 4 + [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("mode", MISMATCH_MODES)
def test_environment_tokens_and_missing_log_probs_are_left_alone(mode):
    old, sampler, mask, index, n = constant_drift([4, 4], 0.0)
    sampler[1], old[2], sampler[5] = float("nan"), -float("inf"), float("nan")
    mask[2] = mask[5] = 0
    weights, statistics = mismatch_weights(mode, old, sampler, mask, index, n)
    assert weights.tolist() == [1.0] * 8
    assert int(statistics.means["mismatch_kl"][1]) == 5  # 8 tokens, 2 masked, 1 without a log-prob
    assert float(statistics.means["mismatch_kl"][0]) == 0.0


def test_weights_carry_no_gradient():
    old, sampler, mask, index, n = random_tokens(1)
    weights, _ = mismatch_weights("token_truncate", old.requires_grad_(), sampler, mask, index, n)
    assert not weights.requires_grad


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask"])
def test_statistics_are_trls(mode):
    step = random_step(3)
    theirs = trl_step(step, mismatch_cap=1.4, mismatch_mode=mode).metrics
    index = torch.repeat_interleave(torch.arange(16), torch.tensor(step.lengths))
    flat = [torch.cat(rows) for rows in (step.old_logprobs, step.sampler_logprobs, step.environment_mask)]
    _, statistics = mismatch_weights(mode, *flat, index, 16, cap=1.4)
    ours = {name: float(total / count) for name, (total, count) in statistics.means.items()}
    ours |= {name: float(value) for name, value in (statistics.minima | statistics.maxima).items()}
    mismatch_kl = ours.pop("mismatch_kl")
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name][0], abs=1e-12), name
    assert len(ours) == 5
    trained = flat[2].bool()
    assert mismatch_kl == pytest.approx(float(kl_k3(flat[1], flat[0])[trained].mean()))


@pytest.mark.parametrize(
    ("mode", "cap", "message"),
    [("token_trunc", None, "did you mean 'token_truncate'"), ("sequence_mask", 0.5, "use at least 1")],
)
def test_bad_settings_are_named_in_one_line(mode, cap, message):
    with pytest.raises(ValueError, match=message) as error:
        mismatch_weights(mode, *random_tokens(0), cap=cap)
    assert "\n" not in str(error.value)
