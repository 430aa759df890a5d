"""2. One chunk from claim to complete: the only folder that knows all steps. No step is implemented here."""
