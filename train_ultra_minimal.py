"""A Verifiers environment in, a better model out: the whole program.

python train_ultra_minimal.py                       # laptop: embedded model; GPU: Qwen2.5-1.5B with vLLM
python train_ultra_minimal.py --seed 1 --max_steps 100
"""

import torch
import verifiers as vf

from grpo_gym import GRPOConfig, GRPOTrainer, default_model

on_gpu = torch.cuda.is_available()
animals = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}

if __name__ == "__main__":
    env = vf.ReasoningGymEnv(
        gym=[{"name": "leg_counting", "weight": 1.0, "config": animals}],
        num_train_examples=2000,
        num_eval_examples=200,
    )
    args = GRPOConfig.from_command_line(  # every setting can be overridden: --learning_rate 1e-4
        run_name="leg-counting",
        max_steps=60,
        learning_rate=1e-6 if on_gpu else 2e-4,
        per_device_train_batch_size=128,
        num_generations=16,
        max_completion_length=512 if on_gpu else 96,
        use_vllm=on_gpu,
        vllm_mode="colocate",
        eval_on_start=True,  # held-out accuracy before the first update, and again at the end
        eval_num_problems=200,
    )
    GRPOTrainer(model=default_model(), env=env, args=args).train()
