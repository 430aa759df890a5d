"""Jobs of `/v1/jobs`: submitted from a list or a place, step by step, by any gateway, after any kill."""
