"""Load, build and wrap models; the label-token forward pass every method rests on."""
