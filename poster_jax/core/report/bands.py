"""Predictions with their uncertainty over one axis."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams, style
from matplotlib.figure import Figure

from poster_jax.core.report.picture import STYLE, new_figure

__all__ = ["BandPanel", "bands"]


class BandPanel(NamedTuple):
    """One panel of `bands`.

    Attributes:
      title: above it.
      x: (n,), the axis that all predictions share.
      predictions: name -> (mean, deviation), each (n,); the first is drawn as a filled band, the
        others as lines with dashed edges over it.
      points: (x, y) of what was learned from, each (m,); None draws none.
    """

    title: str
    x: Any
    predictions: Mapping[str, tuple[Any, Any]]
    points: tuple[Any, Any] | None = None


def bands(
    panels: Sequence[BandPanel],
    *,
    xlabel: str,
    ylabel: str,
    num_deviations: float = 2.0,
    panel_size: tuple[float, float] = (4.2, 3.2),
) -> Figure:
    """Means with so many deviations to either side, side by side on one scale.

    Args:
      panels: what to draw, from the left.
      xlabel: what x is, with its unit.
      ylabel: what y is, with its unit.
      num_deviations: half the width of a band.
      panel_size: inches of one panel.

    Returns:
      Figure.

    Raises:
      ValueError: no panels, or a prediction that does not fit its x.

    Source: matplotlib.

    Example:
      >>> panel = BandPanel("one", [0.0, 1.0], {"theory": ([0.0, 1.0], [0.1, 0.2])})
      >>> len(bands([panel, panel], xlabel="x", ylabel="f").axes)
      2
    """
    if not panels:
        raise ValueError("panels must hold at least one entry, got none.")
    with style.context(STYLE):
        width, height = panel_size
        figure = new_figure(width * len(panels), height + 0.35)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        colours = [look["color"] for look in rcParams["axes.prop_cycle"]]
        for axes, panel in zip(grid, panels, strict=True):
            _draw(axes, panel, num_deviations, colours)
            axes.set_title(panel.title)
            axes.set_xlabel(xlabel)
        grid[0].set_ylabel(ylabel)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


def _draw(axes: Any, panel: BandPanel, num_deviations: float, colours: Sequence[str]) -> None:
    x = np.asarray(panel.x, np.float64)
    for index, (name, (mean, deviation)) in enumerate(panel.predictions.items()):
        mean, deviation = (np.asarray(a, np.float64) for a in (mean, deviation))
        if not x.shape == mean.shape == deviation.shape or x.ndim != 1:
            raise ValueError(
                f"{name!r} must have a mean and a deviation of shape {x.shape} like x, got "
                f"{mean.shape} and {deviation.shape}."
            )
        edges = (mean - num_deviations * deviation, mean + num_deviations * deviation)
        colour = colours[index % len(colours)]
        axes.plot(x, mean, color=colour, label=name, marker="", linestyle="-")
        if index == 0:
            axes.fill_between(x, *edges, color=colour, alpha=0.2, linewidth=0)
        else:
            for edge in edges:
                axes.plot(x, edge, color=colour, marker="", linestyle="--", linewidth=1.2)
    if panel.points is not None:
        axes.plot(*panel.points, color="0.15", linestyle="", marker="o", label="learned from")
