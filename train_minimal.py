r"""Full control in one file: your own data, your own rewards, every setting that matters.

    python train_minimal.py                                     # laptop, in one process
    python train_minimal.py --max_steps 100 --learning_rate 1e-4

Two terminals: vLLM serves the rollouts, the trainer sends it new weights after every step.

    vf-vllm --model tiny --port 8000                            # terminal 1 (on GPU 0: CUDA_VISIBLE_DEVICES=0)
    accelerate launch --num-processes 1 train_minimal.py \
        --use_vllm true --vllm_mode server --vllm_server_port 8000  # terminal 2

On a GPU serve the model that the script trains: vf-vllm --model Qwen/Qwen2.5-1.5B-Instruct
"""

import reasoning_gym
import torch
import verifiers as vf
from datasets import Dataset

from grpo_gym import GRPOConfig, GRPOTrainer, default_model

on_gpu = torch.cuda.is_available()

# ---- 1. Data: any dataset with the columns `question` and `answer` -------------------------------------

SYSTEM_PROMPT = (
    """Think step by step inside <think>...</think>, then give the answer inside <answer>...</answer>."""
)


def make_problems(count: int, seed: int) -> Dataset:
    """Leg-counting questions. For your own: `datasets.load_dataset(...)`, columns renamed if needed."""
    animals = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}
    problems = reasoning_gym.create_dataset("leg_counting", size=count, seed=seed, **animals)
    return Dataset.from_dict(
        {
            "question": [problem["question"] for problem in problems],
            "answer": [problem["answer"] for problem in problems],
        }
    )


# ---- 2. Rewards: plain functions, any of `prompt`, `completion`, `answer`, `info`, `state`, `parser` ----

# The parser finds <think> and <answer> in a completion.
parser = vf.XMLParser(["think", "answer"])


def correct(completion: vf.Messages, answer: str, parser: vf.XMLParser) -> float:
    """1 for the right answer inside <answer>, else 0."""
    return 1.0 if parser.parse_answer(completion) == answer else 0.0


def well_formed(completion: vf.Messages) -> float:
    """1 when each tag appears exactly once and in order: nothing is gained by repeating them."""
    text = completion[-1]["content"] or ""
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    once = all(text.count(tag) == 1 for tag in tags)
    return 1.0 if once and sorted(tags, key=text.find) == tags else 0.0


# The reward of a completion is the weighted sum. Weight 0 makes a function a metric: logged, not trained on.
rubric = vf.Rubric(funcs=[correct, well_formed], weights=[1.0, 0.2], parser=parser)

if __name__ == "__main__":
    # ---- 3. The environment ----------------------------------------------------------------------------
    env = vf.SingleTurnEnv(
        dataset=make_problems(2000, seed=0),
        eval_dataset=make_problems(200, seed=10_000),  # never trained on
        system_prompt=SYSTEM_PROMPT,
        parser=parser,
        rubric=rubric,
    )

    # ---- 4. The settings -------------------------------------------------------------------------------
    # Everything of transformers.TrainingArguments works under its own name. On the command line:
    # --name value.
    args = GRPOConfig.from_command_line(
        run_name="own-data",  # output_dir defaults to outputs/<run_name>
        #
        # How long. One step = one update of the weights.
        max_steps=60,
        #
        # Batch: 128 completions per step = 8 prompts x 16 completions each. More processes or
        # gradient_accumulation_steps multiply per_device_train_batch_size.
        per_device_train_batch_size=128,
        gradient_accumulation_steps=1,
        num_generations=16,  # more: a better baseline for hard prompts, slower steps
        max_completion_length=512 if on_gpu else 96,
        # max_prompt_length=512,          # longer prompts are left out, and counted
        #
        # Optimizer. 1e-6 is right for billions of parameters, 1e-5 for LoRA; the tiny model takes far more.
        learning_rate=1e-6 if on_gpu else 2e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        max_grad_norm=1.0,
        #
        # The loss. These are the defaults; docs/losses.md says why.
        loss_type="dapo",  # or grpo, bnpo, dr_grpo, gspo, cispo
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,  # KL to the starting model; 0 loads no reference model (less memory)
        scale_rewards="group",  # "none" for Dr. GRPO
        num_iterations=1,  # updates on the same completions
        mask_truncated_completions=False,
        importance_sampling_mode="token_truncate",  # corrects for what sampler and trainer compute differently
        #
        # Quality of exploration.
        temperature=1.0,
        top_p=1.0,
        #
        # Memory and speed.
        max_tokens_per_micro_batch=16384,  # out of memory? halve it: results stay the same
        gradient_checkpointing=on_gpu,  # less memory, about 30% slower
        # torch_dtype="bfloat16",         # half the memory for weights; updates of 1e-6 may be rounded away
        # bf16=True,                      # mixed precision (default on GPUs that have it)
        #
        # Where completions come from: in this process, or vLLM.
        use_vllm=on_gpu,
        vllm_mode="colocate" if on_gpu else "server",  # server: see the two terminals above
        vllm_gpu_memory_utilization=0.3,  # colocate: the share vLLM takes of the GPU
        #
        # Evaluation and logs. W&B: report_to="wandb" and WANDB_API_KEY in .env.
        eval_on_start=True,
        eval_num_problems=200,
        logging_steps=1,
        report_to="tensorboard",
        save_steps=1000,
        seed=0,
    )

    # ---- 5. LoRA: train a few percent of the weights ---------------------------------------------------
    # from peft import LoraConfig
    # peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")

    trainer = GRPOTrainer(
        model=default_model(),  # or "Qwen/Qwen2.5-0.5B-Instruct", or a local folder
        env=env,
        args=args,
        # peft_config=peft_config,
    )
    trainer.train()  # resume_from_checkpoint=True goes on where the last run stopped
