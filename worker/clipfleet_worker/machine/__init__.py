"""Several processes on one machine, and `up`. Nothing here loads torch or processes a chunk."""
