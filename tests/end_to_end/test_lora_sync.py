"""LoRA reaches a real vf-vllm, merged and as an adapter: log-probs agree after every sync."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.inference.adapter_endpoint import ADAPTER_NAME
from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.server_api import ServerApi, ServerError, server_logprobs
from grpo_gym.inference.weight_sync import ServerWeightSync
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training.adapter_weights import serialize_adapter
from tests.end_to_end.conftest import SERVER_FLAGS, TEXT, mean_difference, model_logprobs
from tests.end_to_end.test_training_with_server import training_log
from tests.training.test_trainer import legs_env

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def lora_server(tmp_path_factory):
    log = tmp_path_factory.mktemp("vf-vllm") / "server.log"
    flags = [*SERVER_FLAGS, "--enable-lora", "--max-lora-rank", "8"]
    with ColocatedServer("tiny", max_model_len=640, extra_args=flags, log_path=log) as running:
        yield running


def randomise(model, seed):
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def test_every_adapter_that_is_sent_is_served_beside_the_untouched_model(lora_server):
    url = lora_server.base_url
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH), LORA).eval()
    base = server_logprobs(url, "tiny", TEXT)
    sync = ServerWeightSync(url, timeout=120)
    sync.connect("cpu")
    try:
        for version in (1, 2, 3):
            randomise(model, version)
            sync.push_adapter(serialize_adapter(model, LORA), version)
            served = server_logprobs(url, ADAPTER_NAME, TEXT)
            assert mean_difference(served, base) > 0.02
            assert mean_difference(served, model_logprobs(model)) < 1e-3
            assert ServerApi(url).get("/weight_info")["weight_version"] == str(version)
        assert mean_difference(server_logprobs(url, "tiny", TEXT), base) < 1e-6
        sync.check_adapter(8, TARGETS)
        with pytest.raises(ValueError, match=r"up to rank 8 .*--max-lora-rank 16"):
            sync.check_adapter(9, TARGETS)
        with pytest.raises(ValueError, match=r"--lora-target-modules c_proj"):
            sync.check_adapter(8, ["c_proj"])
        with pytest.raises(ServerError, match="not a LoRA adapter"):
            sync._links[0].api.post_bytes("/lora_adapter", b"garbage")
    finally:
        sync.close()


def train(tmp_path, url, lora_sync):
    args = GRPOConfig(
        output_dir=str(tmp_path), report_to="none", per_device_train_batch_size=32, num_generations=8,
        max_completion_length=64, max_steps=3, learning_rate=1e-2, disable_tqdm=True, save_strategy="no",
        use_vllm=True, vllm_server_base_url=url, eval_num_problems=8, num_completions_to_print=0,
        max_staleness=0, lora_sync=lora_sync,
        # The evaluation at the end sends the final weights.
        eval_on_start=True,
    )  # fmt: skip
    trainer = GRPOTrainer("tiny", legs_env(), args, peft_config=dataclasses.replace(LORA))
    trainer.train()
    return trainer


def test_training_with_the_adapter_alone(lora_server, tmp_path):
    """The canary compares log-probs at every sync; here once more, with the trained adapter."""
    trainer = train(tmp_path, lora_server.base_url, "adapter")
    served = server_logprobs(lora_server.base_url, ADAPTER_NAME, TEXT)
    assert mean_difference(served, model_logprobs(trainer.model.eval())) < 1e-3
    for entry in training_log(tmp_path):
        assert entry["sampling/sampling_logp_difference/mean"] < 0.01


def test_training_with_merged_weights(server, tmp_path):
    trainer = train(tmp_path, server.base_url, "merge")
    served = server_logprobs(server.base_url, "tiny", TEXT)
    assert mean_difference(served, model_logprobs(trainer.model.eval())) < 1e-3


def test_a_server_without_lora_is_named_before_training(server, tmp_path):
    with pytest.raises(ValueError, match="--enable-lora --max-lora-rank"):
        train(tmp_path, server.base_url, "adapter")
    assert ServerApi(server.base_url).get("/vf_info")["trainer"] is None, "the next trainer would be refused"
