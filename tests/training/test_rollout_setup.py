"""How a trainer's settings become backend, engine and orchestrator, without servers and weights."""

from grpo_gym.rollouts.overlap import OverlappedSource
from grpo_gym.training import rollout_setup
from tests.training.test_trainer import config


def test_staleness_counts_batches_whatever_the_iterations(tmp_path):
    args = config(tmp_path, use_vllm=True, num_iterations=3, max_staleness=2)
    source = rollout_setup._build_source(args, engine=None, stream=None)
    assert isinstance(source, OverlappedSource)
    assert source.settings.max_staleness == 2
    assert source.settings.max_age == 6
