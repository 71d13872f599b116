"""Starting real launches, as `accelerate launch` does on a user's machine, on the CPU over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = "tests/end_to_end/launch_modes.py"


def environment(**more):
    """One thread per process; the tools of this Python first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": ":".join(paths)}
    return {**os.environ, **ours, **more}


def launch_command(config, num_processes, *arguments):
    """The command of the README, on a free port."""
    config = ["--config-file", config, "--num-processes", str(num_processes), "--main-process-port", "0"]
    return ["accelerate", "launch", *config, *map(str, arguments)]


def launch(config, num_processes, *arguments, timeout=400):
    """Run a launch to its end; the text it printed on both streams when it failed."""
    command = launch_command(config, num_processes, *arguments)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def launch_as_machines(config, machines, *arguments, timeout=120):
    """One launcher with one process for each of some machines, which are all this one; see `launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    many = ["--num_processes", str(machines), "--num_machines", str(machines)]
    command = ["accelerate", "launch", "--config-file", config, *many, *place]
    started = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), *map(str, arguments)],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(machines)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * machines, "".join(printed)[-4000:]
    return printed
