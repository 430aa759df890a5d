"""Heads: small models on top of embeddings; their files and arithmetic. Pure functions, but for the files."""
