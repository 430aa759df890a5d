"""Draws items to mark, and chooses and tests thresholds with marks: of rows, by `labels`."""
