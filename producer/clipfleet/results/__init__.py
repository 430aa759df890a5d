"""5. Reading back: rows, printed formats. Writes nothing."""
