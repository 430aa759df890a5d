"""Servers that `up` and tests start as child processes. No server of the user's belongs here."""
