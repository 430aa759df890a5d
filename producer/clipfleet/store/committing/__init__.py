"""Puts what a night has found into a dataset, in one version."""
