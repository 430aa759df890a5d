"""Breaks the nights of a store, its migrations and its compaction, and lets backfills race: see `run`."""
