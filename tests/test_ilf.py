"""Refining, selecting, teaching: each with its known answers; and a model that learns what the feedback says."""
