"""Vision-language models: images in prompts, the same pixels and tokens in sampling and training."""
