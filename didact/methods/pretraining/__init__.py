"""Train a model from text, at any size."""
