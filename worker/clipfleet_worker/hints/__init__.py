"""1. A hint arrives, or the puller works without one: the task boundary."""
