"""Pages: one self-contained HTML file per run, comparison or claim."""
