"""4. Going on with a job later: retry and rebuild, from what its output shows."""
