"""Get more from a model without changing a weight."""
