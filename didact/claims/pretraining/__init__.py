"""Claims of the papers on training from text."""
