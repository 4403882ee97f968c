"""Generators of records whose truth is known exactly."""
