"""6. From features and label sets to labels and scores. Encodes nothing itself; writes no row."""
