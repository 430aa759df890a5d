"""Label sets: what they mean and how they are written. Computes no scores."""
