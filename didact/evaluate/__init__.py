"""Metrics, protocols, statistics and learners."""
