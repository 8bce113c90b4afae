"""Whole studies: train what is missing, measure, draw. The scripts in `analyses/` are thin shells over them."""
