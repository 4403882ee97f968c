"""Load, build and wrap models; the label-token forward pass that all methods use."""
