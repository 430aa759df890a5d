"""Servers that `up` and tests start on this machine. Knows no job and no worker."""
