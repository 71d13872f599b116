"""Three processes connected as over machines, without torchrun: what each says when one of them ends.

And rank 0 alone, with connections that only play the other ranks, or strangers.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from grpo_gym.training import death_watch
from tests.end_to_end.launching import environment

PROGRAM = textwrap.dedent(
    """
    import sys, time
    import torch
    from grpo_gym.training.death_watch import watch_other_machines
    torch.distributed.init_process_group("gloo")
    watch_other_machines()
    torch.distributed.barrier()
    rank = torch.distributed.get_rank()
    print("ready", flush=True)
    if sys.argv[1] == str(rank):
        if sys.argv[2] == "raise":
            raise RuntimeError("an error of this rank")
        if sys.argv[2].isdigit():
            sys.exit(int(sys.argv[2]))
    time.sleep(float(sys.argv[3]))
    print("slept", flush=True)
    """
)


@pytest.fixture
def three(tmp_path):
    """Starts three ranks; all are gone afterwards."""
    started = []

    def start(rank, how, seconds):
        settings = {
            "WORLD_SIZE": "3",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port()),
        }
        for each in range(3):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(rank), how, str(seconds)],
                    env=environment(RANK=str(each), LOCAL_RANK="0", **settings),
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        for process in started:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def port():

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_is_named_by_all_others(rank, three):
    processes = three(rank, "kill", 600)
    began = time.monotonic()
    os.kill(processes[rank].pid, signal.SIGKILL)
    for other in (process for each, process in enumerate(processes) if each != rank):
        _, text = other.communicate(timeout=60)
        assert other.returncode == 1
        assert f"rank {rank} (" in text
        assert "died: stopping." in text
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("how", ["raise", "3"])
def test_an_exception_or_an_exit_code_is_a_death(how, three):
    processes = three(1, how, 600)
    for rank in (0, 2):
        _, text = processes[rank].communicate(timeout=60)
        assert "rank 1 (" in text


@pytest.mark.parametrize("how", ["0", "75"])
def test_an_orderly_end_is_no_death(how, three):
    for rank, process in enumerate(three(1, how, 2)):
        _, text = process.communicate(timeout=60)
        assert process.returncode == (int(how) if rank == 1 else 0), text
        assert "died" not in text


# ---- rank 0 alone -------------------------------------------------------------------------------------------


@pytest.fixture
def rank_0(monkeypatch):
    """Starts to watch; `connect(line)` plays what connects, `deaths` is what was heard of."""
    errors = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    monkeypatch.setattr(sys, "exit", sys.exit)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(death_watch.atexit, "register", lambda function: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    written, opened = {}, []

    def start(world_size, connect_seconds=30.0):
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
        deaths = queue.Queue()
        store = SimpleNamespace(set=written.__setitem__)
        watch = death_watch.DeathWatch(store, deaths.put, connect_seconds)
        place = json.loads(written[death_watch._KEY])

        def connect(line):
            peer = socket.create_connection(("127.0.0.1", place["port"]), timeout=10)
            opened.append(peer)
            peer.sendall(line)
            return peer

        return SimpleNamespace(watch=watch, deaths=deaths, connect=connect, word=place["word"].encode())

    yield start
    for peer in opened:
        peer.close()
    assert errors == []


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ranks_that_never_connect_are_named(rank_0):
    run = rank_0(world_size=5, connect_seconds=0.5)
    other = run.connect(run.word + b" 2 rank 2 (node2)\n")
    told = "rank 1, 3, 4 never connected to rank 0 within 0.5 s"
    assert run.deaths.get(timeout=10) == told
    assert other.recv(100).decode() == f"{told}\n"


def test_strangers_are_shown_the_door(rank_0, monkeypatch):
    monkeypatch.setattr(death_watch, "_HELLO_SECONDS", 0.2)
    run = rank_0(world_size=2)
    wrong = b"0" * 32 + b" 1 rank 1\n"
    strangers = [b"", b"\xff\xfe\xfd a b\n", b"GET / HTTP/1.1\r\n\r\n", wrong, run.word + b" one rank 1\n"]
    for stranger in [run.connect(line) for line in strangers]:
        assert stranger.recv(1) == b""
    rank_1 = run.connect(run.word + b" 1 rank 1 (n\xffde)\n")
    until(lambda: not run.watch._missing)
    assert run.deaths.empty()
    rank_1.close()
    assert run.deaths.get(timeout=10).endswith("died")


def test_a_rank_may_say_hello_and_goodbye_at_once(rank_0):
    run = rank_0(world_size=2)
    run.connect(run.word + b" 1 rank 1\nbye\n").close()
    until(lambda: not run.watch._missing)
    time.sleep(0.2)
    assert run.deaths.empty()


def test_a_rank_may_connect_while_the_others_are_told_of_a_death(rank_0, monkeypatch):
    run = rank_0(world_size=4)
    peers = [run.connect(run.word + f" {rank} rank {rank}\n".encode()) for rank in (1, 2)]
    until(lambda: len(run.watch._others()) == 2)
    monkeypatch.setattr(
        death_watch, "_send", lambda peer, line: run.watch._add(f"rank {3 + len(run.watch._peers)}", peer)
    )
    peers[0].close()
    assert run.deaths.get(timeout=10) == "rank 1 died"


@pytest.mark.parametrize(
    ("status", "is_orderly"), [(None, True), (0, True), (75, True), (1, False), (130, False), ("text", False)]
)
def test_which_exits_are_orderly(rank_0, status, is_orderly):
    run = rank_0(world_size=2)
    peer = run.connect(run.word + b" 1 rank 1\n")
    until(lambda: not run.watch._missing)
    with pytest.raises(SystemExit) as caught:
        sys.exit(status)
    assert caught.value.code == status
    run.watch.close()
    peer.settimeout(0.2)
    if is_orderly:
        assert peer.recv(10) == b"bye\n"
    else:
        with pytest.raises(TimeoutError):
            peer.recv(10)
