"""Training a model from text, at any size."""
