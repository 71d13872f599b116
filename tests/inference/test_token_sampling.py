import pytest
import torch

from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.inference.token_sampling import RowSettings, processed_log_probs, sample_tokens


def settings_of(logits, **params):
    rows = [SamplingParams(max_tokens=1, **params)] * len(logits)
    return RowSettings.build(rows, logits.shape[-1], logits)


@pytest.mark.parametrize("vocab_size", [1, 2, 9, 1000, 1024])
def test_tokens_are_found_by_the_cumulative_distribution(vocab_size):
    torch.manual_seed(0)
    logprobs = (3 * torch.randn(200, vocab_size, dtype=torch.float64)).log_softmax(-1)
    uniforms = torch.rand(200, dtype=torch.float64)
    expected = (logprobs.exp().cumsum(-1) <= uniforms[:, None]).sum(-1)
    assert torch.equal(sample_tokens(logprobs, uniforms), expected)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("only", [[0], [5], [99], [3, 98]])
def test_a_token_of_probability_zero_is_never_sampled(only, uniform):
    logits = torch.full((1, 100), -torch.inf)
    logits[0, only] = 0.0
    token = sample_tokens(logits.log_softmax(-1), torch.tensor([uniform], dtype=torch.float64))
    assert int(token) in only


def test_top_p_keeps_the_token_that_crosses_and_always_one():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.01, 1), (0.49, 1), (0.6, 2), (0.81, 3), (1.0, 4)):
        logprobs = processed_log_probs(logits, settings_of(logits, top_p=top_p))
        assert int(logprobs.isfinite().sum()) == kept
        torch.testing.assert_close(logprobs.exp().sum(), torch.tensor(1.0))


def test_top_p_works_on_what_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    logprobs = processed_log_probs(logits, settings_of(logits, top_k=2, top_p=0.5))
    torch.testing.assert_close(logprobs.exp(), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # 0.4 / 0.7 > 0.5


def test_min_p_is_relative_to_the_most_likely_token_after_temperature():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert int(processed_log_probs(logits, settings_of(logits, min_p=0.5)).isfinite().sum()) == 2
    assert (
        int(processed_log_probs(logits, settings_of(logits, min_p=0.5, temperature=3.0)).isfinite().sum())
        == 3
    )


def test_repetition_penalty_pushes_seen_tokens_down_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    logprobs = processed_log_probs(logits, settings_of(logits, repetition_penalty=2.0), [[0, 1, 1]])
    torch.testing.assert_close(logprobs, torch.tensor([[1.0, -4.0, 2.0, -2.0]]).log_softmax(-1))
    assert logits[0, 0] == 2.0
