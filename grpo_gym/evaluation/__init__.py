"""Fixed evaluation of a policy."""
