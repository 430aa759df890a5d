"""3a. The public web: guarded and bounded. Other kinds of place are one folder up."""
