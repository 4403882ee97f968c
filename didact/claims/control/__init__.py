"""Claims of the papers on acting."""
