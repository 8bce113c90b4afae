"""Walking along paths between minima by hand: in Jupyter as a widget, elsewhere as a picture."""

from mcanalysis.explore.explorer import explore
from mcanalysis.explore.walk import Reading, Walk, Written, start_walk

__all__ = ["Reading", "Walk", "Written", "explore", "start_walk"]
