"""Tools and environments for models: a sandbox for the programs they write, bandits, robots, web search. No torch."""
