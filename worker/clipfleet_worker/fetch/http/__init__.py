"""3a. The public web, guarded and bounded. Nothing here uses credentials."""
