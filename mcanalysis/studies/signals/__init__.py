"""What is known of a transition and may predict what it does; every file here that defines `SIGNAL` adds one.

So does an installed package that declares one under the entry point group `mcanalysis.signals`.
"""

from mcanalysis.studies.signals.base import Move, Signal, get_signal, signal_names, signals

__all__ = ["Move", "Signal", "get_signal", "signal_names", "signals"]
