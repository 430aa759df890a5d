"""The HTTP door: programs in any language hand over images and texts, and fetch what came of them.

Stateless beside Redis and a place of its own (a folder or a bucket); a producer like any other.
"""
