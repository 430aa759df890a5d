"""What a webhook request says and when it is repeated: bodies, signatures, back-off. Pure functions, no I/O."""
