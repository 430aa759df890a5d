"""Label sets as users write them, converted to the contract's `LabelSet`. Computes no scores."""
