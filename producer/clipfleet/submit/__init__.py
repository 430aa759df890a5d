"""2. Submit: batches become staged chunks in the ledger. Reads no rows."""
