"""What others may look at. Changes nothing."""
