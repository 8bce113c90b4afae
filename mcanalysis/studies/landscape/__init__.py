"""Loss on planes and slices around the minima of runs: measured, stored, tabulated."""
