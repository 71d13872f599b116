"""A real SLURM of three nodes on this machine: munged, slurmctld and three slurmd with a configuration of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
NODES = ("n1", "n2", "n3")

CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
{nodes}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why SLURM cannot run here; None when it can."""
    missing = [name for name in PROGRAMS if not find(name)]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "starting slurmd takes root"


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")


class Cluster:
    """The daemons; `with Cluster(folder) as cluster` stops them whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--me")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *words: object) -> str:
        """Output of a SLURM command.

        Raises:
            AssertionError: it failed.
        """
        command = [str(find(str(words[0]))), *map(str, words[1:])]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def start_now(self, number: str, *settings: str) -> None:
        """Start a requeued job without the two minutes SLURM holds it for.

        Not at once, though: a node takes a start in the second of the requeue for one of the killed job.
        """
        time.sleep(3)
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now", *settings)

    def submit(self, script: Path, **variables: str) -> str:
        """Submit a script, with more variables in its environment; returns the job's id."""
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
        return self.run("sbatch", "--parsable", f"--export={exported}", script)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows about a job: JobState, Restarts, ExitCode, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, timeout: float) -> dict[str, str]:
        """Wait for one of the states.

        Raises:
            AssertionError: it took too long.
        """
        deadline = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"still {job['JobState']}, {job.get('Reason')}"
            time.sleep(0.5)
        return job

    def _start(self) -> None:
        self.folder.chmod(0o700)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=16000"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(folder=self.folder, control_port=ports[0], nodes="\n".join(nodes))
        )
        names = ("key", "socket", "pid", "seed", "log")
        files = {name: f"{self.folder}/munge.{name}" for name in names}
        self._daemon("munged", "--foreground", "--force", "--key-file", files["key"], "--socket", files["socket"],
                     "--pid-file", files["pid"], "--seed-file", files["seed"], "--log-file", files["log"])  # fmt: skip
        self._wait_for(lambda: Path(files["socket"]).exists(), "munged")
        self._daemon("slurmctld", "-D")
        for name in NODES:
            self._daemon("slurmd", "-D", "-N", name)
        self._wait_for(self._is_up, "SLURM")

    def _daemon(self, name: str, *flags: str) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        command = [str(find(name)), *flags]
        # A session of its own: what stops the tests with Ctrl-C must not leave half a cluster.
        daemon = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        self._daemons.append(daemon)

    def _is_up(self) -> bool:
        command = [str(find("sinfo")), "--noheader", "--format=%D %t"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.returncode == 0 and done.stdout.split() == [str(len(NODES)), "idle"]

    def _wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            for daemon in self._daemons:
                assert daemon.poll() is None, self._logs()
            assert time.monotonic() < deadline, f"{what} did not start: {self._logs()}"
            time.sleep(0.2)

    def _logs(self) -> str:
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-1500:]}" for file in files)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
