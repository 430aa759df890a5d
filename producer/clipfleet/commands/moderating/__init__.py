"""The commands that decide by policies."""
