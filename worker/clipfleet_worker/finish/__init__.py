"""8. The end of a job and the errands after it. Reads parts, but never writes one."""
