"""Training: a run, its recipes, the optimizer, the log, and interrupts."""
