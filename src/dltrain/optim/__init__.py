"""What changes the weights: losses, the training step, optimizers, schedules, averages."""
