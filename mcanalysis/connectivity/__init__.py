"""Profiles, fitted curves, ensembles and attribution, for any network; nothing here knows of runs."""
