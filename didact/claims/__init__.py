"""Experiments that test each paper's central claim: arms, seeds, tests, sabotages."""
