"""Access to Redis: URLs, connections, retries. Independent of the keys."""
