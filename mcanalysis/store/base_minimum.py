"""What the base model is called where it stands for a minimum: by a person, in tables, and in the store."""

LABEL = "0-BASE"
"""Its label in tables, where a minimum's is `<k>-<TASK>` with k from 1."""
KEY = "base"
"""The store's key of its point: row 0 of the accuracy matrix and the start of every path from the base are one."""
NAMES = (0, KEY, LABEL)
"""How it may be asked for."""
