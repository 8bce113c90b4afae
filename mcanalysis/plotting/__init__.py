"""Figures for print from result tables: a table in, a `matplotlib.figure.Figure` out; nothing is computed here."""

from mcanalysis.plotting.accuracy_matrix import plot_accuracy_matrix
from mcanalysis.plotting.connectivity import plot_transitions
from mcanalysis.plotting.connectivity_caption import caption
from mcanalysis.plotting.stability_plasticity import plot_stability_plasticity
from mcanalysis.plotting.style import save_figure

__all__ = ["caption", "plot_accuracy_matrix", "plot_stability_plasticity", "plot_transitions", "save_figure"]
