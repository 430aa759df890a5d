"""The commands of `clipfleet-worker`: they parse arguments and print. No logic of a worker belongs here."""
