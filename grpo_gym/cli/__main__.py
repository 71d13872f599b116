"""`python -m grpo_gym.cli`, and `accelerate launch -m grpo_gym.cli train FILE`."""

from __future__ import annotations

import sys

from grpo_gym.cli import main

if __name__ == "__main__":
    sys.exit(main())
