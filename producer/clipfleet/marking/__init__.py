"""Draws items to mark, and chooses and tests thresholds with marks: between the rows of an output and the
pure functions of `labels`."""
