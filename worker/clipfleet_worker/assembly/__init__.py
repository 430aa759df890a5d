"""The composition root: the only folder that chooses implementations. No other logic belongs here."""
