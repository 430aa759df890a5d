"""6. From features and label sets to labels."""
