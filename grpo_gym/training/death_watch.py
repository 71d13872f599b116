"""A rank that dies on one machine ends the ranks on all others, at once and by name.

On one machine the launcher sees to that. Over several machines nobody does: under NCCL the others wait in a
collective until its time-out, half an hour by default. Here every rank keeps a connection to rank 0. The kernel
closes it when a process dies, however it dies; a machine that disappears is found by TCP keep-alive within a minute.
Who ends with an exception or `sys.exit` with another code than 0 and 75 (a checkpoint is saved, try again) has died.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, NoReturn

import torch

from grpo_gym.training.preemption import EXIT_PREEMPTED

_KEY = "grpo_gym/death_watch"
_GOODBYE = b"bye\n"
_CONNECT_SECONDS = 600.0
"""How long rank 0 waits for the others: all of them start to watch at about the same time."""
_HELLO_SECONDS = 30.0
_MAX_LINE = 500
_KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_watch: DeathWatch | None = None


def watch_other_machines() -> None:
    """Start watching when the run spans machines; once per process, called by every rank."""
    global _watch
    spans_machines = int(os.environ.get("WORLD_SIZE", "1")) > int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if _watch is None and spans_machines and torch.distributed.is_initialized():
        _watch = DeathWatch(torch.distributed.distributed_c10d._get_default_store(), _stop)


def _stop(message: str) -> None:
    """End this process from a thread: the main thread may be stuck in a collective for good."""
    print(f"[rank {os.environ.get('RANK', '0')}] {message}: stopping.", file=sys.stderr, flush=True)
    os._exit(1)


class DeathWatch:
    """The connections of one run, a star around rank 0.

    Args:
        store: where rank 0 says how it is reached.
        on_death: called in a thread with what happened.
        connect_seconds: a rank that has not connected to rank 0 by then counts as dead.
    """

    def __init__(
        self,
        store: torch.distributed.Store,
        on_death: Callable[[str], None],
        connect_seconds: float = _CONNECT_SECONDS,
    ) -> None:
        self._on_death = on_death
        self._connect_seconds = connect_seconds
        self._peers: dict[str, socket.socket] = {}
        self._missing: set[int] = set()
        self._lock = threading.Lock()
        self._failed = False
        rank = torch.distributed.get_rank()
        if rank == 0:
            self._listen(store)
        else:
            self._connect(store, rank)
        self._previous_hook, sys.excepthook = sys.excepthook, self._remember_failure
        self._previous_exit, sys.exit = sys.exit, self._remember_exit
        atexit.register(self.close)

    def close(self) -> None:
        """Say goodbye, unless this process ends with a failure: then the others must not wait for it."""
        if self._failed:
            return
        for peer in self._others().values():
            _send(peer, _GOODBYE)

    def _remember_failure(
        self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        self._failed = True
        self._previous_hook(kind, value, traceback)

    def _remember_exit(self, status: object = None) -> NoReturn:
        """In place of `sys.exit`: Python calls no hook for a SystemExit, and tells its code to nobody."""
        self._failed = status not in (None, 0, EXIT_PREEMPTED)
        self._previous_exit(status)  # type: ignore[arg-type]

    def _listen(self, store: torch.distributed.Store) -> None:
        """Say in the store how to connect, and with which word; whoever connects is greeted in a thread."""
        listener = socket.create_server(("", 0))
        word = secrets.token_hex(16)
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        store.set(_KEY, json.dumps({"host": host, "port": listener.getsockname()[1], "word": word}))
        self._missing = set(range(1, torch.distributed.get_world_size()))
        _in_thread(self._accept, listener, word.encode())

    def _accept(self, listener: socket.socket, word: bytes) -> None:
        """Until all ranks have connected, or the time for it is over."""
        end = time.monotonic() + self._connect_seconds
        listener.settimeout(min(1.0, self._connect_seconds))
        with listener:
            while self._missing and time.monotonic() < end:
                try:
                    peer, _ = listener.accept()
                except (TimeoutError, ConnectionAbortedError):
                    continue
                _in_thread(self._greet, peer, word)
        if self._missing:
            ranks = ", ".join(map(str, sorted(self._missing)))
            self._tell_death(f"rank {ranks} never connected to rank 0 within {self._connect_seconds:g} s")

    def _greet(self, peer: socket.socket, word: bytes) -> None:
        """Watch a rank that knows the word; a stranger (a port scan) is shown the door."""
        peer.settimeout(_HELLO_SECONDS)
        lines = peer.makefile("rb")
        try:
            given, rank, name = lines.readline(_MAX_LINE).split(b" ", 2)
            if not secrets.compare_digest(given, word):
                raise ValueError("not one of this run")
            number = int(rank)
        except (OSError, ValueError):
            peer.close()
            return
        known_as = name.decode(errors="replace").strip()
        self._add(known_as, peer)
        self._missing.discard(number)
        self._wait_for_end(known_as, lines)

    def _connect(self, store: torch.distributed.Store, rank: int) -> None:
        place = json.loads(store.get(_KEY))
        peer = socket.create_connection((place["host"], place["port"]), timeout=60)
        name = f"rank {rank} ({socket.gethostname()}, pid {os.getpid()})"
        peer.sendall(f"{place['word']} {rank} {name}\n".encode())
        head = f"rank 0 ({place['host']})"
        self._add(head, peer)
        _in_thread(self._wait_for_end, head, peer.makefile("rb"))

    def _add(self, name: str, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            if hasattr(socket, option):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._lock:
            self._peers[name] = peer

    def _wait_for_end(self, name: str, lines: BinaryIO) -> None:
        """Until a goodbye, the news of a death, or the end of the connection."""
        try:
            said = lines.readline(_MAX_LINE)
        except OSError:
            said = b""
        if said != _GOODBYE:
            self._tell_death(said.decode(errors="replace").strip() or f"{name} died", told_by=name)

    def _tell_death(self, message: str, told_by: str | None = None) -> None:
        for other, peer in self._others().items():
            if other != told_by:
                _send(peer, f"{message}\n".encode())
        self._on_death(message)

    def _others(self) -> dict[str, socket.socket]:
        """Those connected now; more may come at any moment."""
        with self._lock:
            return dict(self._peers)


def _in_thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name="death-watch", daemon=True).start()


def _send(peer: socket.socket, line: bytes) -> None:
    """Best effort: whoever cannot be told any more is gone."""
    try:
        peer.sendall(line)
    except OSError:
        return
