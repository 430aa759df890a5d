"""Bodies of requests as they arrive: bounded in time and memory, JSON parsed, uploads written."""
