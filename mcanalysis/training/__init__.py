"""The trainer: a strategy on a sequence of tasks, into a run directory."""
