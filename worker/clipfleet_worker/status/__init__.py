"""Health pages and metrics of a worker. Nothing here changes a worker or the ledger."""
