"""Three processes connected as over machines, without torchrun: what each says when one of them ends."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

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
        if sys.argv[2] == "end":
            sys.exit(0)
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


def test_an_exception_is_a_death_and_an_orderly_end_is_not(three):
    processes = three(1, "raise", 600)
    for rank in (0, 2):
        _, text = processes[rank].communicate(timeout=60)
        assert "rank 1 (" in text
    processes.clear()
    for process in three(1, "end", 2):
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
        assert "died" not in text
