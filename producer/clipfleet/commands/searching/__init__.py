"""The commands that compare vectors."""
