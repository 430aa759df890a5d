"""3b. Objects of S3."""
