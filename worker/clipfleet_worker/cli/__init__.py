"""The command line of the worker: parses arguments and prints, nothing else."""
