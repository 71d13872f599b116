"""Errors of a server, and of things that are no server, each become one clear ServerError."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grpo_gym.inference.colocate import free_port
from grpo_gym.inference.server_api import (
    ServerApi,
    ServerError,
    check_server,
    data_parallel_size,
    server_logprobs,
    wait_for_server,
)

CARD = {"id": "policy", "root": "/models/policy", "max_model_len": 512}


class Stub(ThreadingHTTPServer):
    """Answers `answers[path]`: (status, bytes); remembers (path, headers, body)."""

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = answers, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, self.headers, body))
        status, answer = self.server.answers.get(self.path, (404, b"{}"))
        if status is None:  # not HTTP at all
            self.wfile.write(answer)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    stubs = []

    def start(answers):
        stub = Stub(answers)
        threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        stubs.append(stub)
        return stub

    yield start
    for stub in stubs:
        stub.shutdown()
        stub.server_close()


def as_json(value):
    return 200, json.dumps(value).encode()


def test_token_trainer_and_api_key_are_sent(serve, monkeypatch):
    monkeypatch.setenv("VF_VLLM_TOKEN", "from-environment")
    monkeypatch.setenv("VLLM_API_KEY", "key")
    stub = serve({"/pause": (200, b"")})
    assert ServerApi(stub.url, trainer="t1").post("/pause", {"a": 1}) == {}
    ServerApi(stub.url, token="given").post("/pause")
    (_, first, body), (_, second, _) = stub.requests
    assert json.loads(body) == {"a": 1}
    assert (first["X-VF-Token"], first["X-VF-Trainer"]) == ("from-environment", "t1")
    assert first["Authorization"] == "Bearer key"
    assert (second["X-VF-Token"], second["X-VF-Trainer"]) == ("given", None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((409, b'{"error": {"message": "held by t2", "code": 409}}'), "/x: HTTP 409: held by t2"),
        ((500, b"Internal Server Error"), "/x: HTTP 500: Internal Server Error"),
        ((200, b"<html>a web page</html>"), "not JSON"),
        ((None, b"SSH-2.0-OpenSSH\r\n\r\n"), "no answer"),
    ],
)
def test_what_goes_wrong_is_one_line(serve, answer, message):
    stub = serve({"/x": answer, "/health": answer})
    with pytest.raises(ServerError, match=message) as caught:
        ServerApi(stub.url).get("/x")
    assert stub.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ServerApi(stub.url).is_healthy()


def test_a_proxy_does_not_stand_in_between(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert ServerApi(serve({"/health": (200, b"")}).url).is_healthy()


def test_waiting_ends_with_advice(serve):
    wait_for_server(serve({"/health": (200, b"")}).url, timeout=5)
    with pytest.raises(TimeoutError, match="start it \\(vf-vllm"):
        wait_for_server(f"http://127.0.0.1:{free_port()}", timeout=0)


@pytest.mark.parametrize("name", ["policy", "/models/policy"])
def test_the_trainers_model_is_known_by_name_or_path(serve, name):
    served = check_server(serve({"/v1/models": as_json({"data": [CARD]})}).url, name, 512)
    assert (served.name, served.max_model_len) == ("policy", 512)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [("other", 512, "the trainer trains other"), ("policy", 513, "--max-model-len 513")],
)
def test_a_server_that_does_not_fit_is_refused(serve, name, length, message):
    with pytest.raises(ValueError, match=message):
        check_server(serve({"/v1/models": as_json({"data": [CARD]})}).url, name, length)


def test_replicas_are_counted(serve):
    answers = {"/get_world_size": as_json({"world_size": 6})}
    answers["/get_world_size?include_dp=false"] = as_json({"world_size": 2})
    assert data_parallel_size(serve(answers).url) == 3


def test_logprobs_of_a_text_skip_its_first_token(serve):
    positions = [None, {"7": {"logprob": -0.5}, "9": {"logprob": -0.1}}, {"8": {"logprob": -2.0}}]
    stub = serve({"/v1/completions": as_json({"choices": [{"prompt_logprobs": positions}]})})
    assert server_logprobs(stub.url, "policy", [6, 7, 8], data_parallel_rank=1) == [-0.5, -2.0]
    _, headers, body = stub.requests[0]
    assert headers["X-data-parallel-rank"] == "1"
    assert json.loads(body)["prompt"] == [6, 7, 8]
