"""Recipes of other tools that merge models, read as points and written from points."""
