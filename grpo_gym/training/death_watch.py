"""A rank that dies on one machine ends the ranks on all others, at once and by name.

On one machine the launcher sees to that. Over several machines nobody does: under NCCL the others wait in a
collective until its time-out, half an hour by default. Here every rank keeps a connection to rank 0. The kernel
closes it when a process dies, however it dies; a machine that disappears is found by TCP keep-alive within a minute.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType

import torch

_KEY = "grpo_gym/death_watch"
_GOODBYE = b"bye\n"
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
    """

    def __init__(self, store: torch.distributed.Store, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self._peers: dict[str, socket.socket] = {}
        self._failed = False
        rank = torch.distributed.get_rank()
        if rank == 0:
            self._listen(store)
        else:
            self._connect(store, rank)
        self._previous_hook, sys.excepthook = sys.excepthook, self._remember_failure
        atexit.register(self.close)

    def close(self) -> None:
        """Say goodbye, unless this process ends with an exception: then the others must not wait for it."""
        if self._failed:
            return
        for peer in self._peers.values():
            _send(peer, _GOODBYE)

    def _remember_failure(
        self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        self._failed = True
        self._previous_hook(kind, value, traceback)

    def _listen(self, store: torch.distributed.Store) -> None:
        """Take one connection from each other rank that knows the word in the store."""
        listener = socket.create_server(("", 0))
        word = secrets.token_hex(16)
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        store.set(_KEY, json.dumps({"host": host, "port": listener.getsockname()[1], "word": word}))
        while len(self._peers) < torch.distributed.get_world_size() - 1:
            peer, _ = listener.accept()
            peer.settimeout(30)
            hello = peer.makefile("r").readline()
            given, _, name = hello.strip().partition(" ")
            if not secrets.compare_digest(given, word):
                peer.close()
                continue
            self._add(name, peer)
        listener.close()

    def _connect(self, store: torch.distributed.Store, rank: int) -> None:
        place = json.loads(store.get(_KEY))
        peer = socket.create_connection((place["host"], place["port"]), timeout=60)
        name = f"rank {rank} ({socket.gethostname()}, pid {os.getpid()})"
        peer.sendall(f"{place['word']} {name}\n".encode())
        self._add(f"rank 0 ({place['host']})", peer)

    def _add(self, name: str, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            if hasattr(socket, option):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers[name] = peer
        threading.Thread(
            target=self._wait_for_end, args=(name, peer), name="death-watch", daemon=True
        ).start()

    def _wait_for_end(self, name: str, peer: socket.socket) -> None:
        """Until a goodbye, the news of a death, or the end of the connection."""
        try:
            said = peer.makefile("rb").readline()
        except OSError:
            said = b""
        if said == _GOODBYE:
            return
        message = said.decode().strip() or f"{name} died"
        for other, each in self._peers.items():
            if other != name:
                _send(each, f"{message}\n".encode())
        self._on_death(message)


def _send(peer: socket.socket, line: bytes) -> None:
    """Best effort: whoever cannot be told any more is gone."""
    try:
        peer.sendall(line)
    except OSError:
        return
