import subprocess
import sys

import pytest
import torch

from grpo_gym.models import TINY_MODEL_PATH, default_model, resolve_model


def test_tiny_is_the_packaged_directory():
    assert resolve_model("tiny") == str(TINY_MODEL_PATH)
    assert (TINY_MODEL_PATH / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "outputs/my_run", "tiny-random"])
def test_other_names_are_left_alone(name):
    assert resolve_model(name) == name


def test_smollm2_before_unpacking_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv("GRPO_GYM_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python tools/smollm2\.py") as error:
        resolve_model("smollm2")
    assert "\n" not in str(error.value)


def test_smollm2_after_unpacking_is_its_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("GRPO_GYM_CACHE", str(tmp_path))
    directory = tmp_path / "smollm2-135m-instruct"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    assert resolve_model("smollm2") == str(directory)


def test_default_model_without_cuda_is_the_tiny_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_model() == str(TINY_MODEL_PATH)


def test_default_model_with_cuda_is_a_real_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_model() == "Qwen/Qwen2.5-1.5B-Instruct"


def test_importing_the_names_does_not_import_torch():
    code = "import sys, grpo_gym.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
