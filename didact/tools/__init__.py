"""What models use and act in: a place to run the programs they write, environments, the web. Imports no torch."""
