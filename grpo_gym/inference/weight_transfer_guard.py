"""Who may change the weights of a server: an ASGI middleware in front of vLLM's development endpoints.

vLLM opens its weight endpoints to everyone who can reach the port. This middleware
- lets everybody generate, but asks for the run's token (`X-VF-Token`) on every path it does not know to be
  harmless, when the server has a token (always, when it is bound to anything but this machine);
- keeps one trainer per server: the first `/hold_weights` or `/init_weight_transfer_engine` takes a lease, a
  second trainer gets HTTP 409 until the first has released it (`POST /release_weights`) or has died. Whether a
  trainer on another machine has died cannot be seen from here: `X-VF-Force` takes its lease;
- closes `/collective_rpc`, which calls any worker method, unless the server is bound to this machine only;
- answers `GET /vf_info`, from which a trainer learns how weights travel, which versions run, and which start of
  the server this is (`instance`);
- refuses (412) a request that names another start in `X-VF-Instance`: a server that was restarted has the weights
  of its checkpoint, and must not be sampled from before it was given the trainer's.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hmac
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from grpo_gym.inference.versions import describe_versions

SETTINGS_VARIABLE = "VF_VLLM_GUARD"
TOKEN_VARIABLE = "VF_VLLM_TOKEN"
TOKEN_HEADER, TRAINER_HEADER, FORCE_HEADER = "x-vf-token", "x-vf-trainer", "x-vf-force"
INSTANCE_HEADER = "x-vf-instance"
RESTARTED = 412
"""HTTP status of a request that was meant for an earlier start of the server."""
INIT_PATH, INFO_PATH = "/init_weight_transfer_engine", "/vf_info"
HOLD_PATH, RELEASE_PATH = "/hold_weights", "/release_weights"
ADAPTER_PATH = "/lora_adapter"
ANONYMOUS = "anonymous"

_LEASED_PATHS = frozenset(
    {"/pause", "/resume", "/start_weight_update", "/update_weights", "/finish_weight_update"}
    | {"/start_draft_weight_update", "/update_weight_version", RELEASE_PATH, ADAPTER_PATH}
)
_OPEN_PATHS = frozenset(
    [
        "/health",
        "/ping",
        "/version",
        "/metrics",
        "/load",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/invocations",
        "/is_paused",
        "/is_sleeping",
        "/get_world_size",
        "/weight_info",
        "/vf_info",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
        "/generative_scoring",
    ]
)
_OPEN_PREFIXES = ("/v1/", "/v2/", "/inference/", "/cohere/", "/docs/", "/metrics/", "/static/")
_GUARDED_V1_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


@dataclasses.dataclass(frozen=True, slots=True)
class GuardSettings:
    """What the middleware knows of its server; travels to vLLM's API processes in the environment.

    Attributes:
        token: needed on guarded paths; None asks for none.
        is_loopback: whether only this machine can reach the server.
        backend: weight transfer engine, "gloo" or "vf_nccl".
        lease_path: file that holds the current trainer's name.
        machine: `machine_identity` of every worker; "" when they run on several machines.
        max_lora_rank: largest adapter it can serve beside the model; 0 without `--enable-lora`.
        lora_modules: the modules an adapter may change.
    """

    token: str | None
    is_loopback: bool
    backend: str
    lease_path: str
    machine: str = ""
    max_lora_rank: int = 0
    lora_modules: list[str] = dataclasses.field(default_factory=list)

    @property
    def instance(self) -> str:
        """Name of this start of the server: that of its lease's folder, which every start makes anew."""
        return Path(self.lease_path).parent.name

    @classmethod
    def from_environment(cls) -> Self:
        """Settings as `vf-vllm` left them.

        Raises:
            RuntimeError: the process was not started by `vf-vllm`.
        """
        text = os.environ.get(SETTINGS_VARIABLE)
        if text is None:
            raise RuntimeError(f"{SETTINGS_VARIABLE} is not set: start the server with vf-vllm.")
        return cls(**json.loads(text))

    def to_environment(self) -> None:
        """Hand the settings to this process's children."""
        os.environ[SETTINGS_VARIABLE] = json.dumps(dataclasses.asdict(self))


class TrainerLease:
    """One trainer per server, kept in a file so that all API processes of a server agree."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def holder(self) -> str | None:
        """The trainer that holds the lease and, as far as can be seen, is alive."""
        with self._locked() as file:
            return _living(file.read())

    def acquire(self, trainer: str, force: bool = False) -> str | None:
        """Take the lease. Returns None, or the other trainer that holds it."""
        with self._locked() as file:
            holder = _living(file.read())
            if holder not in (None, trainer) and not force:
                return holder
            _rewrite(file, trainer)
            return None

    def release(self, trainer: str) -> None:
        """Give the lease back; does nothing for a trainer that does not hold it."""
        with self._locked() as file:
            if file.read() == trainer:
                _rewrite(file, "")

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        self._path.touch(mode=0o600)
        with self._path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _rewrite(file: Any, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)


def trainer_name(unique: str) -> str:
    """A name that tells a server on the same machine whether this process still lives."""
    return f"{unique}@{socket.gethostname()}:{os.getpid()}"


def _living(trainer: str) -> str | None:
    """The trainer, or None when there is none or it is a dead process of this machine."""
    host, _, pid = trainer.partition("@")[2].rpartition(":")
    if host != socket.gethostname() or not (pid.isascii() and pid.isdigit()):
        return trainer or None
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: no process can have this number
        return None
    except PermissionError:
        return trainer
    return trainer


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of the guard itself."""

    status: int
    body: dict[str, Any]


async def send_answer(answer: Answer, send: Any) -> None:
    """Send a JSON answer over ASGI."""
    body = json.dumps(answer.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refuse(status: int, message: str) -> Answer:
    """An error in the shape of OpenAI's API."""
    return Answer(status, {"error": {"message": message, "type": "vf-vllm", "code": status}})


def is_open(path: str) -> bool:
    """Whether a path neither changes the server nor tells its secrets."""
    if path in _GUARDED_V1_PATHS:
        return False
    return path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES)


class WeightSyncGuard:
    """The middleware; vLLM builds it from `--middleware`.

    Args:
        app: the application behind it.
        settings: None reads them from the environment.
    """

    def __init__(self, app: Any, settings: GuardSettings | None = None) -> None:
        self._app = app
        self._settings = settings or GuardSettings.from_environment()
        self._lease = TrainerLease(self._settings.lease_path)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on, or answer it here."""
        answer = self._answer(scope) if scope["type"] == "http" else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        await send_answer(answer, send)

    def _answer(self, scope: dict[str, Any]) -> Answer | None:
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        if path == INFO_PATH:
            return Answer(200, self._info())
        if (named := _named_instance(scope)) not in (None, self._settings.instance):
            return refuse(
                RESTARTED, f"this server was restarted: it is {self._settings.instance}, not {named}."
            )
        if is_open(path):
            return None
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        return self._refuse_stranger(path, headers) or self._lease_answer(path, headers)

    def _info(self) -> dict[str, Any]:
        settings, holder = self._settings, self._lease.holder()
        info: dict[str, Any] = {"backend": settings.backend, "trainer": holder, "instance": settings.instance}
        info |= {"machine": settings.machine, "max_lora_rank": settings.max_lora_rank}
        info["lora_modules"] = settings.lora_modules
        return info | describe_versions()

    def _refuse_stranger(self, path: str, headers: dict[str, str]) -> Answer | None:
        token = self._settings.token
        given = headers.get(TOKEN_HEADER, "").encode()
        if token is not None and not hmac.compare_digest(given, token.encode()):
            return refuse(
                401, f"{path} needs the server's token: set VF_VLLM_TOKEN for the trainer as for vf-vllm."
            )
        if token is None and "origin" in headers:  # a web page in a browser on this machine
            return refuse(403, f"{path} is not for web pages.")
        if path.rstrip("/") == "/collective_rpc" and not self._settings.is_loopback:
            return refuse(403, "/collective_rpc is closed on a server that other machines can reach.")
        return None

    def _lease_answer(self, path: str, headers: dict[str, str]) -> Answer | None:
        trainer = headers.get(TRAINER_HEADER, ANONYMOUS)
        if path in (INIT_PATH, HOLD_PATH):
            holder = self._lease.acquire(trainer, force=headers.get(FORCE_HEADER) == "1")
        elif path in _LEASED_PATHS:
            holder = self._lease.holder()
            holder = None if holder == trainer else holder
        else:
            return None
        if holder is not None:
            return refuse(
                409,
                f"Another trainer holds this server: {holder}. Stop it, or use another server; if it was killed on "
                "another machine, take the server over with vllm_server_takeover=true.",
            )
        if path == RELEASE_PATH:
            self._lease.release(trainer)
        return Answer(200, {"trainer": self._lease.holder()}) if path in (HOLD_PATH, RELEASE_PATH) else None


def _named_instance(scope: dict[str, Any]) -> str | None:
    name = INSTANCE_HEADER.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), None)
