"""Weight sync against a stand-in for vf-vllm that joins real gloo groups: order, errors, who is to blame."""

import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from grpo_gym.inference import weight_sync_phase
from grpo_gym.inference.server_api import ServerError
from grpo_gym.inference.versions import describe_versions
from grpo_gym.inference.weight_sync import ServerWeightSync, WeightSyncError, check_canary
from grpo_gym.inference.weight_sync_phase import Task, run_together
from grpo_gym.inference.weight_transfer_buckets import BucketSpec
from grpo_gym.inference.weight_transfer_group import GlooGroup, Rendezvous, join_store
from grpo_gym.inference.weight_transfer_guard import FORCE_HEADER

WEIGHTS = {f"layer.{i}": torch.full((40, 5), float(i)) for i in range(10)}
BUCKET_BYTES = 2000  # two layers


class StandIn(ThreadingHTTPServer):
    """One worker behind vLLM's weight endpoints."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.info = {"backend": "gloo", "trainer": None, "instance": "first", **describe_versions()}
        self.calls, self.weights = [], {}
        self.fail_at, self.hang_at = None, None
        self.forced = False
        self.group = None
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, path, body):
        self.calls.append(path)
        if path == self.fail_at:
            raise RuntimeError("the worker broke")
        if path == self.hang_at:
            self.stopped.wait(30)
        if path == "/init_weight_transfer_engine":
            meeting = Rendezvous(**body["init_info"])
            self.group = GlooGroup(join_store(meeting), meeting.rank_offset, meeting)
        if path == "/update_weights":
            spec = BucketSpec(**body["update_info"])
            flat = torch.empty(spec.offsets()[-1], dtype=torch.uint8)
            self.group.broadcast(flat)
            self.weights |= dict(spec.unpack(flat))
        return {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(
            200, {"/vf_info": self.server.info, "/get_world_size": {"world_size": 1}}.get(self.path, {})
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0]
        self.server.forced |= self.headers.get(FORCE_HEADER) == "1"
        try:
            self.reply(200, self.server.answer(path, body))
        except RuntimeError as error:
            self.reply(500, {"error": {"message": str(error)}})

    def reply(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def servers():
    with ExitStack() as stack:
        yield [stack.enter_context(StandIn()) for _ in range(2)]


def connected(*servers, timeout=20.0):
    sync = ServerWeightSync([server.url for server in servers], timeout=timeout, bucket_bytes=BUCKET_BYTES)
    sync.connect("cpu")
    return sync


def test_every_server_gets_every_weight_in_one_message_per_bucket(servers):
    sync = connected(*servers)
    sync.push(WEIGHTS.items(), 7)
    sync.close()
    for server in servers:
        assert list(server.weights) == list(WEIGHTS)
        assert all(torch.equal(server.weights[name], weight) for name, weight in WEIGHTS.items())
        assert server.calls == [
            "/hold_weights", "/init_weight_transfer_engine", "/pause", "/start_weight_update",
            *["/update_weights"] * 5, "/finish_weight_update", "/reset_prefix_cache", "/resume", "/release_weights",
        ]  # fmt: skip


@pytest.mark.parametrize("path", ["/start_weight_update", "/update_weights", "/finish_weight_update"])
def test_a_broken_update_is_never_served(servers, path):
    server = servers[0]
    sync = connected(server, timeout=3.0)
    server.fail_at = path
    with pytest.raises(WeightSyncError, match=r"server \(http.*the worker broke.*restart that server"):
        sync.push(WEIGHTS.items(), 1)
    assert "/resume" not in server.calls
    with pytest.raises(WeightSyncError, match=r"no vf-vllm server is left.*earlier weight sync broke off"):
        sync.push(WEIGHTS.items(), 2)


def test_a_server_that_fails_at_pause_is_left_out_and_taken_back(servers):
    sync = connected(*servers)
    servers[1].fail_at = "/pause"
    sync.push(WEIGHTS.items(), 1)
    assert list(sync.instances) == [servers[0].url]
    assert servers[1].calls[-1] == "/resume"
    assert len(servers[0].weights) == len(WEIGHTS)
    servers[1].fail_at = None
    assert sync.refresh() == [servers[1].url]
    sync.push(WEIGHTS.items(), 2)
    assert len(servers[1].weights) == len(WEIGHTS)
    sync.close()


@pytest.mark.parametrize("path", ["/start_weight_update", "/update_weights", "/finish_weight_update"])
def test_a_push_goes_on_with_the_servers_that_are_left(servers, path):
    sync = connected(*servers, timeout=5.0)
    servers[1].fail_at = path
    sync.push(WEIGHTS.items(), 1)
    assert list(sync.instances) == [servers[0].url]
    assert servers[0].calls[-1] == "/resume"
    assert all(torch.equal(servers[0].weights[name], weight) for name, weight in WEIGHTS.items())
    assert "/resume" not in servers[1].calls
    sync.close()


def test_a_half_loaded_server_comes_back_only_when_it_was_started_again(servers):
    sync = connected(*servers, timeout=5.0)
    servers[1].fail_at = "/update_weights"
    sync.push(WEIGHTS.items(), 1)
    servers[1].fail_at = None
    assert sync.refresh() == []
    assert list(sync.instances) == [servers[0].url]
    servers[1].info["instance"] = "second"
    assert sync.refresh() == [servers[1].url]
    assert sync.instances == {servers[0].url: "first", servers[1].url: "second"}
    sync.close()


def test_a_restart_between_two_pushes_is_noticed(servers):
    sync = connected(*servers)
    sync.push(WEIGHTS.items(), 1)
    servers[0].weights.clear()
    servers[0].info["instance"] = "second"
    assert sync.refresh() == [servers[0].url]
    sync.push(WEIGHTS.items(), 2)
    assert list(servers[0].weights) == list(WEIGHTS)
    sync.close()


def test_when_no_server_is_left_the_error_names_all_of_them(servers):
    sync = connected(*servers)
    for server in servers:
        server.shutdown()
        server.server_close()
    with pytest.raises(WeightSyncError, match="none came back within 1 s") as caught:
        sync.refresh(timeout=1.0)
    assert all(server.url in str(caught.value) for server in servers)
    with pytest.raises(WeightSyncError, match="resume_from_checkpoint"):
        sync.push(WEIGHTS.items(), 1)


def broken_weights(count, error=None):
    """Weights whose gathering fails after `count`."""
    yield from list(WEIGHTS.items())[:count]
    raise error or OSError("gathering failed")


def test_gathering_that_fails_at_once_leaves_the_server_alone(servers):
    sync = connected(servers[0])
    with pytest.raises(OSError, match="gathering failed"):
        sync.push(broken_weights(0), 1)
    assert "/pause" not in servers[0].calls
    sync.push(WEIGHTS.items(), 1)
    sync.close()


def test_gathering_that_fails_half_way_says_so(servers):
    sync = connected(servers[0])
    with pytest.raises(WeightSyncError, match=r"could not gather its weights: gathering failed.*restart"):
        sync.push(broken_weights(6), 1)
    assert "/resume" not in servers[0].calls


def test_an_interrupted_update_is_never_served_either(servers):
    """Ctrl-C goes on upwards, but a push that follows it in the same process knows what it left behind."""
    sync = connected(servers[0])
    with pytest.raises(KeyboardInterrupt):
        sync.push(broken_weights(6, KeyboardInterrupt()), 1)
    assert "/resume" not in servers[0].calls
    with pytest.raises(
        WeightSyncError, match=r"no vf-vllm server is left.*was interrupted.*restart that server"
    ):
        sync.push(WEIGHTS.items(), 2)
    sync.close()


def test_an_interrupted_adapter_is_never_served_either(servers, monkeypatch):
    sync = connected(servers[0])
    on_each = sync._on_each

    def interrupted(phase, tasks):
        if phase == "load the adapter":
            raise KeyboardInterrupt
        on_each(phase, tasks)

    monkeypatch.setattr(sync, "_on_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync.push_adapter(b"", 1)
    assert "/resume" not in servers[0].calls
    assert sync.instances == {}
    sync.close()


def test_an_interrupted_pause_is_undone(servers, monkeypatch):
    sync = connected(servers[0])

    def interrupted(phase, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sync, "_on_each", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sync.push(WEIGHTS.items(), 1)
    assert servers[0].calls[-1] == "/resume"
    sync.push(WEIGHTS.items(), 2)
    sync.close()


@pytest.mark.parametrize("broken", [0, 1])
def test_a_server_that_cannot_be_released_keeps_no_other_one_held(servers, broken):
    sync = connected(*servers)
    servers[broken].fail_at = "/release_weights"
    with pytest.raises(ServerError, match="the worker broke"):
        sync.close()
    assert [server.calls[-1] for server in servers] == ["/release_weights"] * 2


def test_a_server_that_hangs_is_named_with_its_phase(servers):
    sync = connected(servers[0], timeout=1.0)
    servers[0].hang_at = "/finish_weight_update"
    with pytest.raises(WeightSyncError, match=rf"phase 'finish': server \({servers[0].url}\).*timed out"):
        sync.push(WEIGHTS.items(), 1)


def test_a_side_that_never_answers_is_named(monkeypatch):
    monkeypatch.setattr(weight_sync_phase, "_LATE_SECONDS", 0.0)
    forever = threading.Event()
    tasks = [Task("http://a", "server", lambda: None), Task("http://a", "trainer", forever.wait)]
    with pytest.raises(WeightSyncError, match=r"phase 'send': no answer from the trainer \(http://a\)"):
        run_together("send", tasks, timeout=0.1)
    forever.set()


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"version": "0.0.1"}, r"runs grpo-gym 0\.0\.1"),
        ({"protocol": 99}, "weight-transfer protocol 99, the trainer 1"),
        ({"vllm": "0.1.0"}, r"runs vLLM 0\.1\.0, the trainer's environment has 0\.29"),
        ({"backend": "ipc"}, "weight transfer 'ipc'"),
        ({"backend": "vf_nccl"}, "trainer computes on cpu"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_joined(servers, info, message):
    servers[0].info |= info
    with pytest.raises(WeightSyncError, match=message):
        connected(servers[0])
    assert servers[0].calls == []


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(
        WeightSyncError, match=r"127\.0\.0\.1:9 cannot update weights; was it started with vf-vllm"
    ):
        ServerWeightSync("http://127.0.0.1:9").connect("cpu")


def test_canary():
    assert check_canary([-1.0, -2.0], [-1.01, -1.99], tolerance=0.02) == pytest.approx(0.01)
    with pytest.raises(WeightSyncError, match=r"differ .* by 0\.5000 nats"):
        check_canary([-1.0, -2.0], [-1.5, -1.5], tolerance=0.02)
    with pytest.raises(WeightSyncError):
        check_canary([float("nan")], [-1.0], tolerance=0.02)
