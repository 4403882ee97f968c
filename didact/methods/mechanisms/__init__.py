"""See how a model learns."""
