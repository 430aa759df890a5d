"""Comparing vectors: the nearest items of a query, groups of duplicates, what differs between two outputs."""
