"""Barriers, intervals, continual-learning metrics, text scores: pure functions on arrays and strings."""
