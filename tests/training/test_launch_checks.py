"""A launch that would not do what it was asked for ends before anything is loaded."""

from types import SimpleNamespace

import pytest

from grpo_gym import GRPOConfig
from grpo_gym.training.launch_checks import check_launch, check_sharding, choose_device, one_line_errors


def settings(**more):
    return SimpleNamespace(**{"use_cpu": False, "fsdp": None, "deepspeed": None, "world_size": 1, **more})


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes but each would train alone"):
        check_launch(settings())
    check_launch(settings(world_size=2))


@pytest.mark.parametrize(("variable", "name"), [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP")])
def test_sharding_that_was_dropped_on_the_way_is_refused(variable, name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(ValueError, match=f"{name} was asked for but is not used"):
        check_sharding(settings(world_size=2), uses_deepspeed=False, uses_fsdp=False)
    check_sharding(settings(world_size=2), uses_deepspeed=True, uses_fsdp=True)


def test_a_wish_for_the_cpu_does_not_turn_sharding_off(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    args = settings()
    choose_device(args)
    assert args.use_cpu
    from accelerate.utils import parse_flag_from_env

    assert not parse_flag_from_env("ACCELERATE_USE_CPU")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_wrong_settings_on_a_command_line_are_one_line_of_rank_zero(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    arguments = ["--per_device_train_batch_size", "5", "--num_generations", "2", "--report_to", "none"]
    with pytest.raises(SystemExit) as ended:
        GRPOConfig.from_command_line(arguments)
    assert ended.value.code == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(printed) == lines


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), one_line_errors("train.py"):
        raise KeyError("not a setting")
