"""The sbatch script: what it asks for, who runs where, and how it ends (with programs that only play their parts)."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_gym.cli import main
from grpo_gym.launch import slurm
from grpo_gym.launch.layout import Layout, Resources, parse_time, plan_layout

EXPERIMENT = Path(__file__).parents[2] / "configs/experiments/tiny_leg_counting.yaml"
SERVER = "use_vllm=true"


def write(folder, *words):
    """Run the command there; returns (exit code, text of the script or None)."""
    path = folder / "job.sh"
    code = main(["slurm", str(EXPERIMENT), "acct", *words, "--work-dir", str(folder), "--output", str(path)])
    return code, path.read_text() if path.exists() else None


def check_syntax(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


# ---- what is asked for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("10:30", 630),
        ("04:00:00", 14400),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-0:0:5", 86405),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("resources", "layout"),
    [
        ({"gpus": 4}, Layout(1, 1, 2, 2)),
        ({"gpus": 4, "server_gpus": 1}, Layout(1, 1, 3, 1)),
        ({"gpus": 0}, Layout(1, 1, 0, 0)),
        ({"gpus": 8, "nodes": 4}, Layout(2, 2, 8, 8)),
        ({"gpus": 8, "nodes": 4, "server_gpus": 8}, Layout(3, 1, 8, 8)),
        ({"gpus": 0, "nodes": 3}, Layout(2, 1, 0, 0)),
    ],
)
def test_servers_take_the_last_gpus_or_nodes(resources, layout):
    assert plan_layout(Resources("acct", **resources), needs_server=True) == layout


@pytest.mark.parametrize(
    ("resources", "needs_server", "problem"),
    [
        ({"gpus": 1}, True, "one GPU cannot be split"),
        ({"gpus": 4, "server_gpus": 4}, True, "use 1 to 3"),
        ({"gpus": 4, "nodes": 2, "server_gpus": 2}, True, "a multiple of 4"),
        ({"gpus": 4, "server_gpus": 2}, False, "has no server"),
    ],
)
def test_a_split_that_cannot_be_is_explained(resources, needs_server, problem):
    with pytest.raises(ValueError, match=problem):
        plan_layout(Resources("acct", **resources), needs_server)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--time", "soon"], "hours:minutes:seconds"),
        (["--time", "00:05:00", "--checkpoint-lead", "400"], "does not fit"),
        (["--partition", "a b"], "partition"),
        (["--gpus", "-1"], "at least 0"),
        (["learning_rat=1"], "learning_rate"),
        (["num_generations=7"], "not divisible"),
        (["model_name_or_path=null"], "name the model"),
        (["launch.accelerate_config=none.yaml"], "not a file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, capsys, words, problem):
    assert write(tmp_path, *words) == (2, None)
    assert problem in capsys.readouterr().err


def test_a_script_is_not_written_over(tmp_path, capsys):
    assert write(tmp_path, "--gpus", "0")[0] == 0
    assert write(tmp_path, "--gpus", "0")[0] == 2
    assert "--force" in capsys.readouterr().err
    assert write(tmp_path, "--gpus", "0", "--force")[0] == 0


def test_one_node(tmp_path):
    words = ["--gpus", "8", "--server-gpus", "2", "--gpu-type", "h100", "--time", "12:00:00"]
    code, text = write(tmp_path, SERVER, "bf16=true", *words)
    assert code == 0
    for line in (
        "#SBATCH --account=acct",
        "#SBATCH --partition=GPUQ",
        "#SBATCH --time=12:00:00",
        "#SBATCH --gres=gpu:h100:8",
        "#SBATCH --mem=320G",
        "#SBATCH --signal=B:USR1@600",
        "#SBATCH --requeue",
        "CUDA_VISIBLE_DEVICES=$(gpus 6 2)",
        "CUDA_VISIBLE_DEVICES=$(gpus 0 6)",
        "vf-vllm --model tiny --data-parallel-size 2",
        "--multi_gpu --num_processes 6",
        "resume_from_checkpoint=auto launch.num_processes=6",
    ):
        assert line in text
    check_syntax(tmp_path / "job.sh")


def test_the_server_loads_the_revision_and_the_code_that_the_trainer_loads(tmp_path):
    code, text = write(
        tmp_path, SERVER, "model.model_revision=v2", "model.trust_remote_code=true", "--gpus", "4"
    )
    assert code == 0
    assert "vf-vllm --model tiny --trust-remote-code --revision v2" in text


def test_several_nodes(tmp_path):
    tensor_parallel = "launch.server_tensor_parallel_size=2"
    code, text = write(tmp_path, SERVER, tensor_parallel, "--nodes", "4", "--server-gpus", "8", "--gpus", "4")
    assert code == 0
    assert "vf-vllm --model tiny --tensor-parallel-size 2 --data-parallel-size 2" in text
    assert "for ((index = 2; index < 4; index++))" in text
    assert "srun --nodes=2 --ntasks=2 --relative=0" in text
    assert "--deepspeed_multinode_launcher standard --num_processes 8 --num_machines 2" in text
    check_syntax(tmp_path / "job.sh")


def test_cpus_only(tmp_path):
    (tmp_path / "ranks.yaml").write_text("num_processes: 2\n")
    launch = [f"launch.accelerate_config={tmp_path}/ranks.yaml", "launch.num_processes=2"]
    code, text = write(tmp_path, *launch, "launch.setup=[module load GCC]", "--gpus", "0", "--partition", "")
    assert code == 0
    assert "gres" not in text
    assert "partition" not in text
    assert "vf-vllm" not in text
    assert "module load GCC" in text
    assert f"accelerate launch --config_file {tmp_path}/ranks.yaml --num_processes 2" in text
    check_syntax(tmp_path / "job.sh")


def test_ports_are_not_those_of_outgoing_connections(tmp_path):
    _, text = write(tmp_path, SERVER, "--gpus", "0")
    lines = [line for line in text.splitlines() if "PORT=$((" in line]
    assert len(lines) == 2
    ranges = []
    for line in lines:
        name = line.partition("=")[0]
        for job in (0, 5999, 6000, 12_345_678):
            script = f'SLURM_JOB_ID={job}; {line}\necho "${name}"'
            ranges.append((name, int(subprocess.check_output(["bash", "-c", script]))))
    servers, trainers = ({port for n, port in ranges if n == name} for name in ("PORT", "RENDEZVOUS_PORT"))
    assert 1024 < min(servers) < max(servers) < min(trainers) < max(trainers) < 32768


# ---- how it ends --------------------------------------------------------------------------------------------

ACCELERATE = """\
#!/bin/bash
"$PARTS/rank" "$@" &
wait "$!" && exit 0
exit 1 # like accelerate, whatever the exit code of its child was
"""
RANK = """\
import os, signal, sys, time
from pathlib import Path

def save(number, frame):
    folder = Path(os.environ["PLAY_OUT"]) / "checkpoint-3"
    if os.environ["PLAY"] != "no-step":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rollout_state.json").write_text("{}")
    sys.exit(75)

print("rank", *sys.argv[1:], flush=True)
if (Path(os.environ["PLAY_OUT"]) / "checkpoint-3").exists():
    sys.exit(0)  # resumed, and nothing is left to do
if os.environ["PLAY"] == "fail":
    sys.exit("out of memory")
if os.environ["PLAY"] == "finish":
    time.sleep(1)
    sys.exit(0)
time.sleep(1)  # a signal that comes now is lost
signal.signal(signal.SIGUSR1, save)
print("listening", flush=True)
time.sleep(60)
"""
VF_VLLM = """\
#!/bin/bash
echo "serving for $VF_VLLM_TOKEN"
if [ "$PLAY" = dead-server ]; then sleep 1; echo "no memory for the cache"; exit 1; fi
sleep 60 & wait
"""


def write_parts(folder, **more):
    """Programs that play accelerate with one rank, and vf-vllm."""
    folder.mkdir()
    rank = f"#!{sys.executable}\n{RANK}"
    for name, text in {"accelerate": ACCELERATE, "vf-vllm": VF_VLLM, "rank": rank, **more}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run the script of an experiment with a server, without SLURM; the parts are played as `PLAY` says."""
    parts = write_parts(tmp_path / "parts", scontrol='#!/bin/bash\necho "$@" >>"$PARTS/scontrol.log"\n')
    monkeypatch.setattr(slurm, "activation", lambda: f"export PATH={parts}:$PATH")
    # As modules do: a variable that nobody has set.
    setup = "launch.setup=[echo modules$NOBODY_HAS_SET_THIS-loaded]"
    code, _ = write(tmp_path, SERVER, "output_dir=out", setup, "--gpus", "0")
    assert code == 0

    def run(part, send=None):
        environment = {**os.environ, "SLURM_JOB_ID": "7", "PARTS": str(parts), "PLAY": part}
        environment["PLAY_OUT"] = str(tmp_path / "out")
        process = subprocess.Popen(
            ["bash", str(tmp_path / "job.sh")],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if send:
            time.sleep(0.5)
            process.send_signal(send)
        output = process.communicate(timeout=60)[0]
        queued = parts / "scontrol.log"
        return process.returncode, output, queued.read_text() if queued.exists() else ""

    yield run
    assert not running_in(parts)


def running_in(folder):
    """Processes whose program is in the folder."""
    pattern = f"{folder}/"
    done = subprocess.run(["pgrep", "-af", pattern], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if "pgrep" not in line]


def test_when_the_trainer_is_done_the_server_is_stopped(play, tmp_path):
    code, output, queued = play("finish")
    assert (code, queued) == (0, "")
    assert "modules-loaded" in output
    assert "done" in output
    assert "serving for " in (tmp_path / "out/logs/slurm-7/server.log").read_text()


def test_when_the_trainer_fails_so_does_the_job(play):
    code, output, queued = play("fail")
    assert (code, queued) == (1, "")
    assert "out of memory" in output


def test_when_the_server_dies_the_trainer_is_stopped(play):
    code, output, queued = play("dead-server")
    assert (code, queued) == (1, "")
    assert "a server ended" in output
    assert "no memory for the cache" in output


def test_near_the_time_limit_the_job_is_saved_and_queued_again(play):
    """The signal comes before the trainer listens, and reaches it all the same."""
    code, output, queued = play("train", send=signal.SIGUSR1)
    assert (code, queued) == (75, "requeue 7\n")
    assert "saved" in output
    assert "checkpoint-3; queued again" in output


def test_a_job_without_progress_is_not_queued_again(play):
    code, output, queued = play("no-step", send=signal.SIGUSR1)
    assert (code, queued) == (1, "")
    assert "raise --time" in output


def test_a_cancelled_job_is_saved_and_not_queued_again(play, tmp_path):
    code, _, queued = play("train", send=signal.SIGTERM)
    assert (code, queued) == (1, "")
    assert (tmp_path / "out/checkpoint-3/rollout_state.json").is_file()
