"""Two real vf-vllm servers: one is killed in the middle of a step, comes back, and never serves old weights."""

import json
import os
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoModelForCausalLM, TrainerCallback

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.server_api import server_logprobs
from grpo_gym.inference.weight_sync import ServerWeightSync, WeightSyncError
from grpo_gym.training.weights import iter_full_weights
from tests.end_to_end.conftest import SERVER_FLAGS, TEXT, mean_difference, model_logprobs
from tests.end_to_end.test_weight_sync import perturb
from tests.training.test_trainer import legs_env

FLAGS = [*SERVER_FLAGS, "--kv-cache-memory-bytes", str(2**28)]


def start_server(folder, name, port=0):
    running = ColocatedServer("tiny", max_model_len=640, port=port, extra_args=FLAGS, log_path=folder / name)
    running.start(timeout=400)
    return running


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers, the second of which tests may replace; all that were started are stopped."""
    folder = tmp_path_factory.mktemp("servers")
    with ThreadPoolExecutor(2) as pool:
        running = list(pool.map(lambda i: start_server(folder, f"{i}.log"), range(2)))
    yield running
    for server in running:
        server.stop()


def kill(server):
    os.killpg(server._process.pid, signal.SIGKILL)
    server._process.wait()


def requests_served(server):
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


class Saboteur(TrainerCallback):
    """Kills the second server while it has requests in flight, and starts it again two steps later."""

    def __init__(self, servers, folder):
        self.servers, self.folder = servers, folder
        self.trainer = None
        self.in_flight_when_killed = 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            threading.Thread(target=self.kill_when_busy, daemon=True).start()
        if state.global_step == 4:
            port = self.servers[1].port
            self.servers[1] = start_server(self.folder, "again.log", port)

    def kill_when_busy(self):
        pool = self.trainer.rollouts.backend.sampler._pool
        victim = next(server for server in pool._servers if server.base_url == self.servers[1].base_url)
        while victim.in_flight < 4:
            time.sleep(0.001)
        self.in_flight_when_killed = victim.in_flight
        kill(self.servers[1])


def arguments(servers, output_dir, **changes):
    settings = {
        "output_dir": str(output_dir), "report_to": "none", "per_device_train_batch_size": 32, "num_generations": 8,
        "max_completion_length": 64, "max_steps": 6, "learning_rate": 1e-3, "disable_tqdm": True,
        "save_strategy": "no", "use_vllm": True, "vllm_server_base_urls": [s.base_url for s in servers],
        "eval_num_problems": 8, "num_completions_to_print": 0, "max_staleness": 0, "do_eval": True,
    }  # fmt: skip
    return GRPOConfig(**settings | changes)


def test_training_goes_on_without_a_server_and_takes_it_back(servers, tmp_path):
    saboteur = Saboteur(servers, tmp_path)
    trainer = GRPOTrainer("tiny", legs_env(), arguments(servers, tmp_path), callbacks=[saboteur])
    saboteur.trainer = trainer
    trainer.train()
    assert saboteur.in_flight_when_killed >= 4
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "reward" in entry]
    assert len(steps) == 6
    for entry in steps:
        # Every completion was sampled with the trainer's weights of that step, whichever server made it.
        assert entry["sampling/sampling_logp_difference/mean"] < 0.02
    assert all(rollout.is_valid for group in trainer.last_groups.groups for rollout in group.rollouts)
    expected = model_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path))
    for server in servers:
        assert mean_difference(server_logprobs(server.base_url, "tiny", TEXT), expected) < 1e-3
        assert requests_served(server) > 8


def test_all_servers_dead_is_one_error_that_names_them(servers, tmp_path):
    class KillAll(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for server in servers:
                kill(server)

    args = arguments(servers, tmp_path, max_steps=3, vllm_server_timeout=10, do_eval=False)
    trainer = GRPOTrainer("tiny", legs_env(), args, callbacks=[KillAll()])
    with pytest.raises(WeightSyncError, match="none came back within 10 s") as caught:
        trainer.train()
    assert all(server.base_url in str(caught.value) for server in servers)


def test_every_tensor_parallel_rank_gets_the_weights(tmp_path, tiny_model):
    """Each rank holds half of every layer: log-probs are right only when both halves are new."""
    flags = [*FLAGS, "--tensor-parallel-size", "2"]
    running = ColocatedServer("tiny", max_model_len=640, extra_args=flags, log_path=tmp_path / "log")
    running.start(timeout=400)
    try:
        sync = ServerWeightSync(running.base_url, timeout=120)
        sync.connect("cpu")
        perturb(tiny_model, 5)
        sync.push(iter_full_weights(tiny_model), 1)
        served = server_logprobs(running.base_url, "tiny", TEXT)
        assert mean_difference(served, model_logprobs(tiny_model)) < 1e-3
        sync.close()
    finally:
        running.stop()
