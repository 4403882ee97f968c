"""Make the model forget."""
