"""Labelling again: a finished job with stored vectors becomes the source of a new job. Fetches no image."""
