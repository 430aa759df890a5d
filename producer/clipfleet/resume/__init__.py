"""4. Retry and rebuild: resume a job later, from its output."""
