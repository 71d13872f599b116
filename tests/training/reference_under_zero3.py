"""Run under ZeRO-3: whether the reference model is the policy; two folders, given on the command line.

... reference_under_zero3.py ROOT      ROOT holds a model, ROOT/sub another one
"""

import sys

import deepspeed
import torch
from transformers import AutoModelForCausalLM

from grpo_gym import GRPOConfig
from grpo_gym.training.model_loading import load_model
from grpo_gym.training.reference import make_reference


def gathered(model):
    found = []
    for parameter in model.parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found.append(parameter.detach().clone())
    return found


def check(policy, args):
    assert all(hasattr(parameter, "ds_id") for parameter in policy.parameters())
    reference = make_reference(policy, 0.1, False, args.model_init_kwargs)
    ours, theirs = gathered(policy), gathered(reference)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert any(a.abs().max() > 0 for a in ours)


if __name__ == "__main__":
    root = sys.argv[1]
    settings = {"output_dir": f"{root}/out", "report_to": "none", "num_generations": 2}
    batch = {"per_device_train_batch_size": 2, "beta": 0.1}
    args = GRPOConfig(**settings, **batch, model_init_kwargs={"subfolder": "sub"})
    check(load_model(root, args), args)

    args = GRPOConfig(**settings, **batch)
    ready = AutoModelForCausalLM.from_pretrained(root)
    for parameter in ready.parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.mul_(1.5)
    check(ready, args)
    torch.distributed.destroy_process_group()
