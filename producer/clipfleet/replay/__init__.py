"""Replays: stored vectors or scores are decided again by another policy, and the decisions compared. Neither
records nor announces them.
"""
