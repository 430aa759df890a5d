"""Requests that wait for their answer: those of a few milliseconds share a job on lane `high`."""
