"""Make a tiny vision-language model with a warm start on coloured shapes.

python tools/make_tiny_vision_model.py outputs/tiny_vision --family idefics3
"""

from __future__ import annotations

import argparse

from tiny_vision.families import FAMILIES, make, save
from tiny_vision.warm_start import warm_start
from visual_tasks import load_environment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", help="where the model and its processor are written")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="idefics3")
    parser.add_argument("--steps", type=int, default=120, help="supervised steps; 0 for random weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = load_environment(image_size=56)
    rows = [env.row(index) for index in range(60)]
    texts = [f"{row['prompt'][0]['content']} {row['question']} {row['answer']}" for row in rows]
    model, processor = make(args.family, texts, seed=args.seed)
    losses = warm_start(model, processor, env, steps=args.steps, seed=args.seed)
    print(f"{args.family}: loss {losses[0]:.2f} -> {losses[-1]:.2f}" if losses else "no warm start")
    print(save(model.eval(), processor, args.directory))


if __name__ == "__main__":
    main()
