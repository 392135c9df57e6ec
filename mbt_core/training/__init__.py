"""Training: loop, optimiser and schedule, mixup, state, loggers."""
