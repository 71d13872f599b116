"""In-process generation in another dtype than the policy's."""

import pytest
import torch

from grpo_gym.inference import rollout_dtype
from grpo_gym.inference.rollout_dtype import fastest_dtype, matmul_seconds, resolve_rollout_dtype
from tests.training.test_trainer import config, logs, train

CPU = torch.device("cpu")


def test_the_policys_own_dtype_is_the_default():
    assert resolve_rollout_dtype(None, torch.float64, CPU) == torch.float64
    assert resolve_rollout_dtype("bfloat16", torch.float32, CPU) == torch.bfloat16


@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_auto_takes_the_faster_one_and_measures_once(monkeypatch, fast):
    calls = []

    def seconds(dtype, device):
        calls.append(dtype)
        return 1.0 if dtype == fast else 2.0

    monkeypatch.setattr(rollout_dtype, "matmul_seconds", seconds)
    fastest_dtype.cache_clear()
    try:
        assert [resolve_rollout_dtype("auto", torch.float32, CPU) for _ in range(2)] == [fast, fast]
        assert len(calls) == 2
    finally:
        fastest_dtype.cache_clear()


def test_the_measurement_is_of_real_products():
    assert matmul_seconds(torch.float32, CPU) > 0


def test_bfloat16_rollouts_of_a_float32_policy(tmp_path):
    """The copy follows the policy: the difference stays one of rounding, and the loss corrects it."""
    trainer = train(tmp_path, rollout_dtype="bfloat16", max_steps=3, learning_rate=1e-3)
    assert trainer.model.dtype == torch.float32
    for entry in logs(trainer):
        assert 1e-6 < entry["sampling/sampling_logp_difference/mean"] < 0.05
        assert entry["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=0.05)


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rollout_dtype.*bfloat16"):
        config(tmp_path, rollout_dtype="int3")
