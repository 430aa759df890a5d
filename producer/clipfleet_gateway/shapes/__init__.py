"""The shapes of bodies, as they are parsed and documented. No I/O, and nothing of what a request does."""
