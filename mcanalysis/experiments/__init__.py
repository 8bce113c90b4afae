"""Whole studies: train what is missing, measure, tabulate, draw. The scripts in `analyses/` are thin shells over them."""
