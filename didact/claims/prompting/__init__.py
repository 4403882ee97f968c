"""Claims of the prompting papers."""
