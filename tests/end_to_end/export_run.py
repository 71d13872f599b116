"""Run by every process of a launch: train on fixed rollouts, save a checkpoint, and keep the trainer's own weights.

accelerate launch --config-file configs/accelerate/fsdp2.yaml tests/end_to_end/export_run.py OUT adamw lora
"""

import sys
from pathlib import Path

import torch
from launch_modes import report, run

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for name in names:
        out = Path(folder) / name
        report(run(name, out, save_strategy="steps", save_steps=2), out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
