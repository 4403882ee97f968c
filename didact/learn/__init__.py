"""The training loop and what it builds on: gradients, schedules, checkpoints, hooks."""
