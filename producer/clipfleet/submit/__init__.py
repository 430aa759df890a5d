"""2. From batches to staged chunks that the ledger knows. Reads no source and no rows."""
