"""Probes for a GPU machine without a network, and the archive that brings them there."""
