"""Claims of the alignment papers."""
