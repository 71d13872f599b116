"""push_to_hub: refused before training where it cannot work; otherwise the weights arrive, sent by huggingface_hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grpo_gym import GRPOTrainer
from grpo_gym.training import hub
from tests.training.test_trainer import config, legs_env

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("offline", "token", "message"),
    [(True, "hf_x", "HF_HUB_OFFLINE is set"), (False, None, "there is no token; set HF_TOKEN")],
)
def test_a_push_that_cannot_work_fails_before_the_model_loads(tmp_path, monkeypatch, offline, token, message):
    monkeypatch.setattr(hub, "is_offline_mode", lambda: offline)
    monkeypatch.setattr(hub, "get_token", lambda: token)
    monkeypatch.setattr("grpo_gym.training.model_loading.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message) as caught:
        GRPOTrainer("tiny", legs_env(), config(tmp_path, push_to_hub=True, hub_model_id="me/model"))
    assert "\n" not in str(caught.value)


def test_hub_token_goes_without_hf_token(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    hub.check_hub(config(tmp_path, push_to_hub=True, hub_token="hf_x"))


class HubStub(BaseHTTPRequestHandler):
    """The part of the Hub's API that an upload goes through; keeps what it gets."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization"), body))
        base = f"http://127.0.0.1:{self.server.server_port}"
        reply = {}
        if self.path == "/api/repos/create":
            reply = {"url": f"{base}/me/model", "name": "me/model"}
        elif "/preupload/" in self.path:
            reply = {"files": [preupload(each) for each in json.loads(body)["files"]]}
        elif self.path.endswith("/info/lfs/objects/batch"):
            reply = {
                "transfer": "basic",
                "objects": [lfs(each, base) for each in json.loads(body)["objects"]],
            }
        elif "/commit/" in self.path:
            reply = {"commitUrl": f"{base}/me/model/commit/abc", "commitOid": "abc", "success": True}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def log_message(self, *_):
        pass


def preupload(file):
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def lfs(file, base):
    return {**file, "actions": {"upload": {"href": f"{base}/lfs/{file['oid']}"}}}


@pytest.fixture
def hub_stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubStub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_trained_model_is_uploaded_with_hf_token(tmp_path, hub_stub):
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub_stub.server_port}",
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    settings = [
        "max_steps=1", f"output_dir={tmp_path}", "report_to=none", "per_device_train_batch_size=16",
        "eval_on_start=false", "eval_strategy=no", "push_to_hub=true", "hub_model_id=me/model",
        "hub_private_repo=true", "hub_strategy=end",
    ]  # fmt: skip
    command = [sys.executable, "-m", "grpo_gym.cli", "train", "configs/experiments/math_tiny.yaml", *settings]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = hub_stub.seen
    created = next(body for _, path, _, body in seen if path == "/api/repos/create")
    assert (json.loads(created)["name"], json.loads(created)["organization"]) == ("model", "me")
    assert b"private" in created
    api_calls = [(path, token) for method, path, token, _ in seen if method == "POST"]
    assert {token for _, token in api_calls} == {"Bearer hf_secret"}
    uploads = [hashlib.sha256(body).hexdigest() for method, path, _, body in seen if path.startswith("/lfs/")]
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() in uploads
    commits = [body.decode() for _, path, _, body in seen if path == "/api/models/me/model/commit/main"]
    assert any('"path": "model.safetensors"' in body and '"path": "config.json"' in body for body in commits)
