"""One module per paper, grouped by what the user wants."""
