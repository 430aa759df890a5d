"""3a. The public web: guarded and bounded."""
