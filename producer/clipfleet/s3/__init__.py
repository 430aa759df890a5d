"""How S3 is reached: clients, credentials, files. Knows no object of ours."""
