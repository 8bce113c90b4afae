"""How often intervals of the package hold the truth: simulated samples of populations that are known."""

from mcanalysis.coverage.study import (
    cells_of_others,
    coverage_table,
    missed_bars,
    summary_cells,
    summary_markdown,
)

__all__ = ["cells_of_others", "coverage_table", "missed_bars", "summary_cells", "summary_markdown"]
