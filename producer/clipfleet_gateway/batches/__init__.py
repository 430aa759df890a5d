"""Batches: one file of requests is one job. Every step is repeatable, by any gateway, after any kill."""
