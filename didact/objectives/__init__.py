"""Label tokens in, losses out: no model, no I/O."""
