"""Study how a model learns."""
