"""What models may use: a place to run the programs they write."""
