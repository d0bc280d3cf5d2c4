"""Lines in several panels that share their names: training under several settings, by method."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams, style
from matplotlib.figure import Figure

from poster_jax.core.report.picture import STYLE, new_figure

__all__ = ["LinePanel", "line_panels"]


class LinePanel(NamedTuple):
    """One panel of `line_panels`.

    Attributes:
      title: above it.
      series: name -> (x, y) or (x, y, low, high), each (n,); the latter draws a band.
      guides: name -> height of a dashed horizontal line.
    """

    title: str
    series: Mapping[str, tuple[Any, ...]]
    guides: Mapping[str, float] = {}


def line_panels(
    panels: Sequence[LinePanel],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    columns: int = 3,
    panel_size: tuple[float, float] = (3.0, 2.5),
) -> Figure:
    """Lines side by side; a name has one colour and marker in all panels, and one legend entry.

    Args:
      panels: what to draw, row by row; the panels of a row share their vertical axis.
      xlabel: what x is, with its unit.
      ylabel: what y is, with its unit.
      log_x: logarithmic x; its ticks then stand at the values themselves, where these are few.
      log_y: logarithmic y.
      columns: panels in a row.
      panel_size: inches of one panel.

    Returns:
      Figure. A value that is not finite leaves a gap.

    Raises:
      ValueError: no panels, or a series whose parts differ in length.

    Source: matplotlib.

    Example:
      >>> panel = LinePanel("tanh", {"none": ([0, 1], [0.1, 0.5])}, {"chance": 0.1})
      >>> len(line_panels([panel] * 3, xlabel="step", ylabel="accuracy", columns=2).axes)
      3
    """
    if not panels:
        raise ValueError("panels must hold at least one entry, got none.")
    names = dict.fromkeys(name for panel in panels for name in panel.series)
    with style.context(STYLE):
        looks = list(rcParams["axes.prop_cycle"])
        look_of = {name: looks[index % len(looks)] for index, name in enumerate(names)}
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        figure = new_figure(columns * panel_size[0], rows * panel_size[1] + 0.5)
        grid = figure.subplots(rows, columns, sharey="row", squeeze=False)
        handles = {}
        for axes, panel in zip(grid.flat, panels, strict=False):
            for name, series in panel.series.items():
                handles[name] = _line(axes, name, series, look_of[name])
            for name, height in panel.guides.items():
                handles[name] = axes.axhline(height, color="0.4", linestyle="--", linewidth=1)
            axes.set_title(panel.title)
            axes.set_xscale("log" if log_x else "linear")
            axes.set_yscale("log" if log_y else "linear")
            if log_x:
                _ticks_at_values(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for index in range(len(panels)):
            if index + columns >= len(panels):
                grid.flat[index].set_xlabel(xlabel)
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=max(columns, 2))
        return figure


def _line(axes: Any, name: str, series: tuple[Any, ...], look: Mapping[str, Any]) -> Any:
    arrays = [np.asarray(part, dtype=np.float64) for part in series]
    if len(arrays) not in (2, 4) or arrays[0].ndim != 1 or len({a.shape for a in arrays}) > 1:
        raise ValueError(
            f"{name!r} must be (x, y) or (x, y, low, high) of one axis and equal length, got "
            f"shapes {[a.shape for a in arrays]}."
        )
    x, y, *band = arrays
    (line,) = axes.plot(x, y, markevery=max(len(x) // 6, 1), **look)
    if band:
        axes.fill_between(x, *band, color=look["color"], alpha=0.15, linewidth=0)
    return line


def _ticks_at_values(axes: Any, panel: LinePanel) -> None:
    x = np.unique(np.concatenate([np.asarray(x, np.float64) for x, *_ in panel.series.values()]))
    if len(x) <= 8:
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.set_xticks([], minor=True)
