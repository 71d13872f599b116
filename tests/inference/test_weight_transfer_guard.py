"""Who may do what to a server: tokens, leases, closed doors."""

import asyncio
import json
import multiprocessing
import os
import socket

import pytest

from grpo_gym.inference.weight_transfer_guard import (
    GuardSettings,
    TrainerLease,
    WeightSyncGuard,
    trainer_name,
)

GUARDED = [
    "/pause", "/resume", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights",
    "/finish_weight_update", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/sleep",
    "/wake_up", "/abort_requests", "/server_info", "/hold_weights", "/release_weights",
    "/v1/load_lora_adapter", "/scale_elastic_ep", "/start_profile", "/a_route_vllm_may_add", "/pause/", "//pause",
]  # fmt: skip
OPEN = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/health",
    "/metrics",
    "/version",
    "/weight_info",
]


async def inner_app(scope, receive, send):
    """The server behind the guard: says yes to everything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"passed": true}'})


@pytest.fixture
def make_guard(tmp_path):
    def make(token=None, is_loopback=True):
        return WeightSyncGuard(
            inner_app, GuardSettings(token, is_loopback, "gloo", str(tmp_path / "trainer"))
        )

    return make


def ask(guard, path, root_path="", **headers):
    """Status and JSON body of one request."""
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root_path, "headers": raw}
    asyncio.run(guard(scope, None, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize("path", GUARDED)
def test_a_stranger_without_the_token_is_refused(make_guard, path):
    guard = make_guard(token="secret", is_loopback=False)
    for headers in ({}, {"x_vf_token": "wrong"}, {"authorization": "Bearer secret"}):
        status, body = ask(guard, path, **headers)
        assert status == 401
        assert "VF_VLLM_TOKEN" in body["error"]["message"]


@pytest.mark.parametrize("path", OPEN)
def test_everybody_may_generate_and_look(make_guard, path):
    assert ask(make_guard(token="secret", is_loopback=False), path) == (200, {"passed": True})


def test_the_token_opens_the_weights_but_not_arbitrary_calls(make_guard):
    guard = make_guard(token="secret", is_loopback=False)
    assert ask(guard, "/update_weights", x_vf_token="secret") == (200, {"passed": True})
    assert ask(guard, "/collective_rpc", x_vf_token="secret")[0] == 403


def test_this_machine_needs_no_token_but_web_pages_stay_out(make_guard):
    guard = make_guard()
    assert ask(guard, "/pause")[0] == 200
    assert ask(guard, "/collective_rpc")[0] == 200
    assert ask(guard, "/pause", origin="https://evil.example")[0] == 403
    assert ask(guard, "/v1/completions", origin="https://evil.example")[0] == 200


def test_a_root_path_does_not_hide_a_guarded_path(make_guard):
    guard = make_guard(token="secret", is_loopback=False)
    assert ask(guard, "/proxy/pause", root_path="/proxy")[0] == 401
    assert ask(guard, "/proxy/v1/models", root_path="/proxy")[0] == 200


def test_one_trainer_at_a_time(make_guard):
    guard = make_guard()
    first, second = trainer_name("first"), trainer_name("second")
    assert ask(guard, "/init_weight_transfer_engine", x_vf_trainer=first)[0] == 200
    for path in (
        "/hold_weights",
        "/init_weight_transfer_engine",
        "/update_weights",
        "/pause",
        "/release_weights",
    ):
        status, body = ask(guard, path, x_vf_trainer=second)
        assert status == 409
        assert first in body["error"]["message"]
        assert "vllm_server_takeover=true" in body["error"]["message"]
    assert ask(guard, "/update_weights", x_vf_trainer=first)[0] == 200
    assert ask(guard, "/vf_info")[1]["trainer"] == first
    assert ask(guard, "/release_weights", x_vf_trainer=first)[0] == 200
    assert ask(guard, "/hold_weights", x_vf_trainer=second) == (200, {"trainer": second})


def test_force_takes_a_server_over(make_guard):
    guard = make_guard()
    first, second = trainer_name("first"), trainer_name("second")
    ask(guard, "/hold_weights", x_vf_trainer=first)
    assert ask(guard, "/hold_weights", x_vf_trainer=second, x_vf_force="1")[0] == 200
    assert ask(guard, "/update_weights", x_vf_trainer=first)[0] == 409


def test_a_dead_trainer_holds_nothing_and_a_remote_one_does(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    lease = TrainerLease(tmp_path / "trainer")
    assert lease.acquire(f"gone@{socket.gethostname()}:{child.pid}") is None
    assert lease.holder() is None
    assert lease.acquire("remote@another-host:1") is None
    assert lease.acquire(trainer_name("x")) == "remote@another-host:1"


def test_the_lease_is_one_for_all_api_processes(tmp_path):
    path = tmp_path / "trainer"
    me = f"a@{socket.gethostname()}:{os.getpid()}"
    assert TrainerLease(path).acquire(me) is None
    assert TrainerLease(path).acquire("b@elsewhere:1") == me


def test_a_request_for_an_earlier_start_of_the_server_is_refused(make_guard):
    guard = make_guard()
    instance = ask(guard, "/vf_info")[1]["instance"]
    assert ask(guard, "/v1/completions", x_vf_instance=instance) == (200, {"passed": True})
    status, body = ask(guard, "/v1/completions", x_vf_instance="vf-vllm-before")
    assert status == 412
    assert "restarted" in body["error"]["message"]


def test_versions_are_told_to_everybody(make_guard):
    _, info = ask(make_guard(token="secret", is_loopback=False), "/vf_info")
    assert info.keys() >= {"version", "protocol", "vllm"}
