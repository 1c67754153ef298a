"""Steps, loops, optimizers, checkpoints and run directories."""
