"""List sources: files with one item per line or row. Reads no item's bytes."""
