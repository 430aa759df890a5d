"""Breaks the nights of a store, its migrations and its compaction, and lets them race: see `run`."""
