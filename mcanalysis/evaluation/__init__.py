"""Losses and scores of adapters on tasks: one engine for many points on many examples."""
