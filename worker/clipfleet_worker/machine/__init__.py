"""Several processes on one machine, and `up`. Loads no torch."""
