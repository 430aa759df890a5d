"""3b. Objects of S3, read with boto3 or over own connections. Writes nothing."""
