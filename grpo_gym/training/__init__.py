"""GRPOConfig, GRPOTrainer and the mathematics of the loss."""
