"""What a webhook request says, and when it is repeated: pure functions, no I/O."""
