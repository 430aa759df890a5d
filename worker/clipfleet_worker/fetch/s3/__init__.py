"""3b. Objects of S3, with the worker's own endpoint and credentials. No public URL is fetched here."""
