"""8. The end of a job and the errands after it."""
