"""Backfills: one night compares a source with a store, and fills the store with what has changed."""
