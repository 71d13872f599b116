"""What a run will cost before anyone queues: memory per device, seconds per step, the best split of the devices."""
