"""8. The end of a job and the errands after it. Works on no chunk."""
