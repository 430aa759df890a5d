"""Who may ask for what: one object per key in the gateway's place, with the hash of its secret."""
