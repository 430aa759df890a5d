"""The composition root: the only folder that chooses implementations."""
