"""How values are spread, several groups on one axis."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from poster_jax.core.report.picture import STYLE, new_figure

__all__ = ["histograms"]


def histograms(
    groups: Mapping[str, Any],
    *,
    xlabel: str,
    log_x: bool = False,
    num_bins: int = 30,
    guides: Mapping[str, float] | None = None,
) -> Figure:
    """The share of each group's values in common bins.

    Args:
      groups: name -> values of any shape; what is not finite (on a logarithmic axis: not positive)
        is left out and does not count.
      xlabel: what the values are, with their unit.
      log_x: bins of equal ratio on a logarithmic axis.
      num_bins: bins from the least of all values to the largest.
      guides: name -> place of a dashed vertical line.

    Returns:
      Figure.

    Raises:
      ValueError: no groups, or one that has no value to show.

    Source: matplotlib.

    Example:
      >>> len(histograms({"a": [1.0, 2.0, 2.5]}, xlabel="x").axes)
      1
    """
    if not groups:
        raise ValueError("groups must hold at least one entry, got none.")
    shown = {name: np.asarray(values, np.float64).ravel() for name, values in groups.items()}
    shown = {n: v[np.isfinite(v) & ((v > 0) | (not log_x))] for n, v in shown.items()}
    for name, values in shown.items():
        if not values.size:
            raise ValueError(f"{name!r} must have values that can be shown, got none.")
    edges = _edges(np.concatenate(list(shown.values())), log_x, num_bins)
    with style.context(STYLE):
        figure = new_figure()
        axes = figure.subplots()
        for name, values in shown.items():
            heights = np.histogram(values, edges)[0] / values.size
            patch = axes.stairs(heights, edges, label=name, fill=False, linewidth=1.5)
            axes.stairs(heights, edges, fill=True, alpha=0.15, color=patch.get_edgecolor())
        for name, place in (guides or {}).items():
            axes.axvline(place, color="0.4", linestyle="--", linewidth=1, label=name)
        if log_x:
            axes.set_xscale("log")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(xlabel=xlabel, ylabel="share of the values")
        axes.legend()
        return figure


def _edges(values: np.ndarray, log: bool, num_bins: int) -> np.ndarray:
    scaled = np.log(values) if log else values
    edges = np.histogram_bin_edges(scaled, num_bins)
    return np.exp(edges) if log else edges
