"""The screenshots of the docs, made from what the demo model says about a collection of its samples."""
