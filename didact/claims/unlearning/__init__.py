"""Claims of the unlearning papers."""
