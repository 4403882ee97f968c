"""Claims of the mechanism papers."""
