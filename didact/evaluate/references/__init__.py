"""Algorithms with known properties that an in-context learner is compared with."""
