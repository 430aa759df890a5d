"""The command that writes a report, and what it prints."""
