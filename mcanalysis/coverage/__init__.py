"""How often intervals of the package hold the truth: simulated samples of populations that are known."""
