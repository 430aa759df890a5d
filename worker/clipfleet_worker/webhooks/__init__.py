"""Delivers webhook events from the ledger's outbox, beside the chunks, on an event loop in its own thread."""
