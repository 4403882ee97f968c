"""See how a model learns."""

from didact.methods.mechanisms.mesa_gd import mesa_gd

__all__ = ["mesa_gd"]
