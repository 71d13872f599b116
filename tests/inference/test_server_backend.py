"""Which servers are sampled from after a weight sync."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from grpo_gym.inference import backends
from grpo_gym.inference.backends import ServerBackend
from grpo_gym.inference.server_api import ServerError
from grpo_gym.inference.weight_sync import WeightSyncError
from tests.inference.conftest import make_model
from tests.inference.test_weight_sync import StandIn


class FakeCanary:
    """Raises what the test puts in `troubles` for a URL."""

    def __init__(self):
        self.troubles = {}

    def trainer_logprobs(self, model):
        return [-1.0]

    def check(self, url, ours):
        if url in self.troubles:
            raise self.troubles[url]


@pytest.fixture
def servers():
    with ExitStack() as stack:
        yield [stack.enter_context(StandIn()) for _ in range(2)]


def make_backend(servers, **more):
    accelerator = SimpleNamespace(is_main_process=True, device=torch.device("cpu"))
    return ServerBackend(
        [server.url for server in servers],
        model_name="policy",
        accelerator=accelerator,
        request_timeout=5.0,
        server_timeout=0.0,
        canary=FakeCanary(),
        **more,
    )


@pytest.fixture
def backend(servers):
    made = make_backend(servers)
    yield made
    made.close()


def sampled_from(backend):
    return [server.base_url for server in backend.sampler._pool._servers if not server.lost]


def test_all_servers_with_the_weights_are_sampled_from(backend, servers):
    backend.update(make_model(), 3)
    assert sampled_from(backend) == [server.url for server in servers]
    assert backend.sampler.policy_version == 3
    assert all(server.weights for server in servers)


def test_a_server_that_restarts_is_back_only_when_the_canary_finds_the_weights(backend, servers):
    model = make_model()
    backend.update(model, 1)
    servers[1].info["instance"] = "second"
    backend._canary.troubles[servers[1].url] = WeightSyncError("other weights")
    backend.update(model, 2)
    assert sampled_from(backend) == [servers[0].url]
    backend._canary.troubles.clear()
    backend.update(model, 3)
    assert sampled_from(backend) == [server.url for server in servers]
    assert {server.instance for server in backend.sampler._pool._servers} == {"first", "second"}


def test_wrong_weights_on_a_server_that_never_left_end_the_run(backend, servers):
    backend._canary.troubles[servers[1].url] = WeightSyncError("other weights")
    with pytest.raises(WeightSyncError, match="other weights"):
        backend.update(make_model(), 1)


def test_a_server_that_dies_before_the_canary_is_left_out(backend, servers):
    backend._canary.troubles[servers[0].url] = ServerError("no answer")
    backend.update(make_model(), 1)
    assert sampled_from(backend) == [servers[1].url]


def test_without_any_server_the_update_says_so(backend, servers):
    for server in servers:
        server.shutdown()
        server.server_close()
    with pytest.raises(WeightSyncError, match="no vf-vllm server is left"):
        backend.update(make_model(), 1)


def test_servers_that_cannot_be_used_are_released_and_the_first_error_is_the_one_that_shows(servers):
    servers[1].fail_at = "/release_weights"
    adapter = SimpleNamespace(r=8, target_modules={"q_proj"})
    with pytest.raises(ValueError, match="serves adapters up to rank 0") as caught:
        make_backend(servers, adapter=adapter)
    assert [server.calls[-1] for server in servers] == ["/release_weights"] * 2
    assert "the worker broke" in caught.value.__notes__[0]


def test_without_a_sampler_no_server_stays_held(servers, monkeypatch):
    def broken(*_, **__):
        raise OSError("no sockets left")

    monkeypatch.setattr(backends, "VLLMSampler", broken)
    with pytest.raises(OSError, match="no sockets left"):
        make_backend(servers)
    assert [server.calls[-1] for server in servers] == ["/release_weights"] * 2


@pytest.mark.parametrize("takeover", [False, True])
def test_a_server_is_taken_over_only_when_asked(servers, takeover):
    made = make_backend(servers, takeover=takeover)
    made.close()
    assert [server.forced for server in servers] == [takeover] * 2
