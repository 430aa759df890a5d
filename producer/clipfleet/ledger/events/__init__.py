"""Events that leave the ledger: decisions on a stream for anyone who reads it, and deliveries to webhooks."""
