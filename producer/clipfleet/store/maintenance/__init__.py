"""Keeps a store small and free of what must not be in it; says what has changed. Prints nothing."""
