"""Make the model act."""
