"""Small faults that the chaos runs must find: one patch against the product each, see `__main__`."""
