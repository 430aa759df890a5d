"""How Redis is reached: URLs, connections, retries. Knows no key of ours."""
