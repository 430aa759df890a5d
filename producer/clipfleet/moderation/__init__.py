"""Decisions by a policy: made from rows, recorded in an append-only log, explained, and made again by another
policy. Sends nothing.
"""
