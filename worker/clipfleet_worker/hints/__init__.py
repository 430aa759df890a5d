"""1. The task boundary: a hint arrives, or the puller works without one. No step of a chunk belongs here."""
