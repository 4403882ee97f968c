"""Synthetic worlds: generators of records whose ground truth is known exactly."""
