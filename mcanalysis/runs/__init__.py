"""Runs of training, read back."""
