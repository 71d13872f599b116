"""Prompts to scored rollouts, with the ids and log-probs of exactly what was sampled."""
