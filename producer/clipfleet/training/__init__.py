"""Fits heads: what they are fitted on (rows, roots, marks), and the report. The arithmetic is in `heads`."""
