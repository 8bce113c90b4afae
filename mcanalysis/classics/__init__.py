"""The classic results of mode connectivity: one file each, on scikit-learn's digits, and their table."""

from mcanalysis.classics.study import ClassicsResult, claims_cells, classic_names, reproduce_classics

__all__ = ["ClassicsResult", "claims_cells", "classic_names", "reproduce_classics"]
