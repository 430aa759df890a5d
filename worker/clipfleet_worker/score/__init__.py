"""6. From features and label sets to labels. Knows no pixels; writes no rows."""
