"""The classic results of mode connectivity on scikit-learn's digits: one file each, and their table."""

from mcanalysis.classics.study import ClassicsResult, claims_cells, classic_names, reproduce_classics

__all__ = ["ClassicsResult", "claims_cells", "classic_names", "reproduce_classics"]
