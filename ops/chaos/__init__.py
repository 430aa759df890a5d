"""Faults on purpose: what breaks connections, processes and stores for tests/chaos and `make chaos`."""
