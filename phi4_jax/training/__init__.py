"""One training loop for every stage: optimizer, step, guard, checkpoints, metrics."""
