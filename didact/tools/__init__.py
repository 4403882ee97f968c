"""What models use and act in: a place to run the programs they write, and environments. Imports no torch."""
