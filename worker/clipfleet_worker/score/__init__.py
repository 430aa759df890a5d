"""6. From features and label sets to labels, and on to decisions. Knows no pixels; writes no rows."""
