"""The trainer's own server, played by small Python programs: it is watched, and stopped whole."""

import os
import sys
import tempfile
import time

import pytest

from grpo_gym.inference import colocate
from grpo_gym.inference.colocate import ColocatedServer

HEALTHY = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
worker.stdout.readline()
print(worker.pid, flush=True)
server.serve_forever()
"""


@pytest.fixture
def make_server(tmp_path):
    servers = []

    def make(program, port=0):
        server = ColocatedServer("tiny", port=port, log_path=tmp_path / f"{len(servers)}.log")
        server._command = [sys.executable, "-c", program, str(server.port)]
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.stop()


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_flags_reach_vf_vllm():
    server = ColocatedServer("tiny", max_model_len=64, port=8123, extra_args=["--enforce-eager"])
    command = " ".join(server._command)
    assert "grpo_gym.inference.server --model tiny --port 8123 --max-model-len 64" in command
    assert command.endswith("--enforce-eager")
    assert server.base_url == "http://127.0.0.1:8123"


def test_a_server_that_dies_shows_the_end_of_its_log(make_server):
    server = make_server("import sys; print('no such model: banana'); sys.exit(3)")
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3 while starting.*no such model: banana"):
        server.start(timeout=30)


def test_a_server_that_never_gets_ready_is_stopped(make_server):
    server = make_server("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    with pytest.raises(TimeoutError, match="not ready within 2 s"):
        server.start(timeout=2)
    assert not is_running(int(server.log_path.read_text()))


def test_stop_also_ends_workers_that_ignore_the_polite_signal(make_server):
    server = make_server(HEALTHY)
    server.start(timeout=30)
    worker = int(server.log_path.read_text().splitlines()[0])
    assert is_running(worker)
    server.stop()
    for _ in range(100):
        if not is_running(worker):
            break
        time.sleep(0.05)
    assert not is_running(worker)
    server.stop()  # a second time does nothing


def test_another_server_on_the_port_is_not_taken_for_ours(make_server):
    first = make_server(HEALTHY)
    first.start(timeout=30)
    with pytest.raises(RuntimeError, match="another server already answers"):
        make_server(HEALTHY, port=first.port).start(timeout=30)


def test_a_launchers_variables_do_not_reach_the_server(make_server, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    names = ("RANK", "MASTER_PORT", colocate.PARENT_VARIABLE)
    program = f"import os, sys; print({{k: os.environ.get(k) for k in {names}}}); sys.exit(1)"
    with pytest.raises(RuntimeError, match="while starting") as caught:
        make_server(program).start(timeout=30)
    expected = {"RANK": None, "MASTER_PORT": None, colocate.PARENT_VARIABLE: str(os.getpid())}
    assert str(expected) in str(caught.value)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def unlogged(program):
    server = ColocatedServer("tiny")
    server._command = [sys.executable, "-c", program, str(server.port)]
    return server


def test_a_server_that_was_well_leaves_no_temporary_log(temporary):
    with unlogged(HEALTHY) as server:
        assert server.log_path.read_text()
    assert list(temporary.iterdir()) == []


def test_a_server_that_was_not_leaves_its_log(temporary):
    with pytest.raises(RuntimeError, match="while starting"):
        unlogged("print('no'); raise SystemExit(1)").start(timeout=30)
    with unlogged(HEALTHY) as server:
        server._process.kill()
        server._process.wait()
    assert len(list(temporary.glob("vf-vllm-log-*/server.log"))) == 2


def test_a_log_of_its_own_is_kept_and_goes_on_when_the_server_is_started_again(make_server):
    server = make_server(HEALTHY)
    for _ in range(2):
        server.start(timeout=30)
        server.stop()
    assert len(server.log_path.read_text().splitlines()) >= 2
