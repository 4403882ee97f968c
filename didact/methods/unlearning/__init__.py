"""Make the model forget."""

from didact.methods.unlearning.npo import npo

__all__ = ["npo"]
