"""Files of the keys: what clients upload, and what batches answer with. Knows no HTTP and no batches."""
