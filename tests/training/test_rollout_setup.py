"""How a trainer's settings become backend, engine and orchestrator, without servers and weights."""

from types import SimpleNamespace

import pytest

from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.overlap import OverlappedSource
from grpo_gym.training import rollout_setup
from tests.training.test_trainer import config


def test_staleness_counts_batches_whatever_the_iterations(tmp_path):
    args = config(tmp_path, use_vllm=True, num_iterations=3, max_staleness=2)
    source = rollout_setup._build_source(args, engine=None, stream=None)
    assert isinstance(source, OverlappedSource)
    assert source.settings.max_staleness == 2
    assert source.settings.max_age == 6


@pytest.mark.parametrize("broken", ["RolloutEngine", "_build_source"])
def test_what_was_started_is_closed_when_the_rest_cannot_be_built(
    tmp_path, monkeypatch, echo_env, scripted_sampler, broken
):
    closed, engines = [], []

    class Engine(RolloutEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            engines.append(self)

    def fail(*_, **__):
        raise OSError("no threads left")

    backend = SimpleNamespace(sampler=scripted_sampler(None), close=lambda: closed.append("backend"))
    trainer = SimpleNamespace(
        env=echo_env, args=config(tmp_path), preflight=SimpleNamespace(renderer=None, stream=None)
    )
    monkeypatch.setattr(rollout_setup, "_build_backend", lambda trainer: backend)
    monkeypatch.setattr(rollout_setup, "RolloutEngine", Engine)
    monkeypatch.setattr(rollout_setup, broken, fail)
    with pytest.raises(OSError, match="no threads left"):
        rollout_setup.build_rollouts(trainer)
    assert closed == ["backend"]
    assert all(engine._loop.is_closed() for engine in engines)
    assert len(engines) == (broken == "_build_source")


class NeverStarted:
    """Stands in for `ColocatedServer` and remembers its settings."""

    base_url = "http://127.0.0.1:1"

    def __init__(self, model, **settings):
        self.settings = settings

    def start(self, timeout):
        pass


def bare_trainer(args):
    return SimpleNamespace(
        args=args,
        model=None,
        accelerator=SimpleNamespace(is_main_process=True, unwrap_model=lambda model: model),
        preflight=SimpleNamespace(model_name="tiny", served_model_name="tiny", max_prompt_len=64),
    )


@pytest.fixture
def built(monkeypatch):
    """The settings with which a backend is built, instead of the backend."""
    monkeypatch.setattr(rollout_setup, "ColocatedServer", NeverStarted)
    monkeypatch.setattr(rollout_setup, "Canary", lambda trainer: None)
    for name in ("ServerBackend", "ColocatedBackend"):
        monkeypatch.setattr(rollout_setup, name, lambda server=None, **more: {"server": server, **more})
    return lambda args: rollout_setup._build_backend(bare_trainer(args))


def test_a_colocated_servers_log_is_among_the_runs_own(tmp_path, built):
    args = config(tmp_path, use_vllm=True, vllm_mode="colocate")
    server = built(args)["server"]
    assert server.settings["log_path"] == tmp_path / "out" / "logs" / "vf-vllm.log"


@pytest.mark.parametrize("takeover", [False, True])
def test_the_setting_for_a_takeover_reaches_the_backend(tmp_path, built, takeover):
    args = config(tmp_path, use_vllm=True, vllm_server_takeover=takeover)
    assert built(args)["takeover"] is takeover
