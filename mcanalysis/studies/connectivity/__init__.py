"""Loss and score along the paths between the minima of runs: measured, stored, tabulated."""
