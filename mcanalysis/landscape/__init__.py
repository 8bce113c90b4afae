"""Curvature, slices and spectra of the loss around points, for any network; nothing here knows of runs."""
