"""Where tokens come from: vf-vllm servers, and the generator in this process."""
