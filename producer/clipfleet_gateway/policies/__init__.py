"""Moderation policies of the gateway's place, by name and hash, and the logs that their decisions go to."""
