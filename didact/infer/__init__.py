"""Generation, scoring and decoding."""
