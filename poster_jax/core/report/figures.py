"""The pictures that posters share, each a function of arrays."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams, style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from poster_jax.core.report.picture import STYLE, new_figure

__all__ = [
    "Panel",
    "curves",
    "heat_map",
    "interval_plot",
    "scatter_panels",
    "spectra",
    "strips",
]


class Panel(NamedTuple):
    """One panel of `scatter_panels`.

    Attributes:
      title: above it.
      x: (n,).
      y: (n,).
      note: in the corner, such as a correlation with its interval.
      log_x: whether the axis is logarithmic where the values span more than a decade; values that
        are not positive are then counted in the title.
    """

    title: str
    x: Any
    y: Any
    note: str = ""
    log_x: bool = False


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with style.context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def curves(
    series: Mapping[str, tuple[Any, Any]],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    guides: Mapping[str, float] | None = None,
) -> Figure:
    """Lines over a common axis: losses, accuracies, schedules.

    Args:
      series: name -> (x, y), each (n,).
      xlabel: what x is, with its unit.
      ylabel: what y is, with its unit.
      log_x: logarithmic x.
      log_y: logarithmic y.
      guides: name -> height of a dashed horizontal line (a threshold).

    Returns:
      Figure. A value that is not finite leaves a gap.

    Raises:
      ValueError: no series, or x and y of different lengths.

    Source: matplotlib.

    Example:
      >>> len(curves({"loss": ([1, 2], [0.5, 0.1])}, xlabel="step", ylabel="loss").axes)
      1
    """
    _need("series", series)
    figure = new_figure()
    axes = figure.subplots()
    for name, (x, y) in series.items():
        x, y = _pair(name, x, y)
        axes.plot(x, y, label=name, markevery=max(len(x) // 8, 1))
    for name, height in (guides or {}).items():
        axes.axhline(height, color="0.4", linestyle="--", linewidth=1, marker="", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _scales(axes, log_x, log_y)
    if log_x:
        _ticks_at(
            axes, np.unique(np.concatenate([np.asarray(x, float) for x, _ in series.values()]))
        )
    _legend(figure, axes)
    return figure


@_styled
def scatter_panels(
    panels: Sequence[Panel],
    *,
    ylabel: str,
    groups: Any = None,
    columns: int = 4,
    panel_size: tuple[float, float] = (2.6, 2.5),
) -> Figure:
    """One quantity against several others, a panel each, all with the same vertical axis.

    Args:
      panels: what to draw, row by row.
      ylabel: what y is, with its unit.
      groups: (n,) labels; each gets a colour and a marker of its own.
      columns: panels in a row.
      panel_size: inches of one panel.

    Returns:
      Figure.

    Raises:
      ValueError: no panels, or x, y and groups of different lengths.

    Source: matplotlib.

    Example:
      >>> len(scatter_panels([Panel("a", [1, 2], [3, 4])] * 3, ylabel="gap", columns=2).axes)
      3
    """
    _need("panels", panels)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(columns * panel_size[0], rows * panel_size[1] + (groups is not None) * 0.3)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        x, y = _pair(panel.title, panel.x, panel.y)
        labels = np.full(x.size, "") if groups is None else np.asarray(groups)
        for label, look in zip(np.unique(labels), rcParams["axes.prop_cycle"], strict=False):
            here = labels == label
            axes.scatter(x[here], y[here], s=12, alpha=0.7, label=str(label), linewidth=0, **look)
        _few_ticks(axes, x, panel.log_x)
        lost = int(np.sum(~np.isfinite(x)) + np.sum(x <= 0) * panel.log_x)
        note = panel.note + (f"\n{lost} not shown" if lost else "")
        axes.set_title(f"{panel.title}\n{note}" if note else panel.title)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    if groups is not None:
        handles = grid.flat[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4, markerscale=2)
    return figure


@_styled
def heat_map(
    values: Any,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    log: bool = False,
    fmt: str = "{:.2g}",
) -> Figure:
    """A matrix as colours with its numbers written in.

    Args:
      values: (rows, columns).
      rows: names, from the top.
      columns: names.
      label: what the numbers are, with their unit.
      log: logarithmic colours; zeros then get the colour of the smallest other number.
      fmt: how the numbers are written.

    Returns:
      Figure.

    Raises:
      ValueError: names that do not fit the matrix.

    Source: matplotlib.

    Example:
      >>> figure = heat_map([[1, 10], [0, 100]], rows="ab", columns="cd", label="n", log=True)
      >>> figure.axes[0].get_yticklabels()[0].get_text()
      'a'
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape != (len(rows), len(columns)):
        raise ValueError(
            f"values must have shape (rows, columns) = ({len(rows)}, {len(columns)}), got "
            f"{values.shape}."
        )
    shown = np.where(np.isfinite(values), values, np.nan)
    if log:
        positive = shown[shown > 0]
        shown = np.log10(np.clip(shown, positive.min() if positive.size else 1.0, None))
    figure = new_figure(1.5 + 1.15 * len(columns), 1.4 + 0.45 * len(rows))
    axes = figure.subplots()
    image = axes.imshow(shown, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(columns)), columns, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(values):
        bright = (shown[row, column] - low) / ((high - low) or 1) > 0.6
        colour = "black" if bright else "white"
        text = fmt.format(value)
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9.5)
    bar = figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    if log:
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        bar.ax.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:.0f}}}$")
    bar.outline.set_visible(False)
    return figure


@_styled
def interval_plot(
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    xlabel: str,
    zero: float | None = 0.0,
) -> Figure:
    """Estimates with their intervals, one line each, several groups beside each other.

    Args:
      groups: name of the group (colour) -> name of the line -> (estimate, low, high).
      xlabel: what the numbers are.
      zero: where "no effect" lies; a vertical line. None draws none.

    Returns:
      Figure. An interval that is not finite is left out, its name stays.

    Raises:
      ValueError: no groups.

    Source: matplotlib.

    Example:
      >>> figure = interval_plot({"before": {"trace": (0.5, 0.4, 0.6)}}, xlabel="tau")
      >>> figure.axes[0].get_yticklabels()[0].get_text()
      'trace'
    """
    _need("groups", groups)
    names = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    figure = new_figure(5.6, 1.2 + (0.18 + 0.16 * len(groups)) * len(names))
    axes = figure.subplots()
    for index, (group, rows) in enumerate(groups.items()):
        offset = 0.24 * (index - (len(groups) - 1) / 2)
        places = [names.index(name) + offset for name in rows]
        middle, low, high = np.array(list(rows.values()), dtype=np.float64).T
        # A bootstrap interval need not contain its estimate.
        reach = np.abs(np.stack([np.minimum(low, middle), np.maximum(high, middle)]) - middle)
        axes.errorbar(middle, places, xerr=reach, linestyle="", capsize=2.5, label=group)
    if zero is not None:
        axes.axvline(zero, color="0.4", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@_styled
def spectra(
    densities: Mapping[str, tuple[Any, Any]],
    *,
    outliers: Mapping[str, Any] | None = None,
    xlabel: str = "eigenvalue",
    ylabel: str = "density of eigenvalues",
    floor: float = 1e-6,
) -> Figure:
    """Densities of eigenvalues on a logarithmic axis, single eigenvalues marked below.

    Args:
      densities: name -> (grid, density), each (n,).
      outliers: name -> eigenvalues to mark, in the colour of the density of that name.
      xlabel: what the eigenvalues belong to.
      ylabel: of the density.
      floor: densities below it are cut off.

    Returns:
      Figure.

    Raises:
      ValueError: no densities.

    Source: matplotlib.

    Example:
      >>> len(spectra({"a": ([0.0, 1.0], [1.0, 0.1])}, outliers={"a": [3.0]}).axes)
      1
    """
    _need("densities", densities)
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    for index, (name, (grid, density)) in enumerate(densities.items()):
        grid, density = _pair(name, grid, density)
        shown = np.where(density > floor, density, np.nan)
        (line,) = axes.plot(grid, shown, label=name, marker="")
        axes.fill_between(grid, floor, shown, color=line.get_color(), alpha=0.15, linewidth=0)
        marks = np.asarray((outliers or {}).get(name, ()))
        axes.plot(
            marks,
            np.full(marks.size, 0.03 + 0.05 * index),
            transform=axes.get_xaxis_transform(),
            linestyle="",
            marker="v",
            markersize=5,
            color=line.get_color(),
            label=f"top eigenvalues, {name}" if marks.size else None,
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


@_styled
def strips(groups: Mapping[str, Any], *, ylabel: str, log: bool = False) -> Figure:
    """All values of several groups beside each other, each a point.

    Args:
      groups: name -> (n,) values.
      ylabel: what the values are, with their unit.
      log: logarithmic axis.

    Returns:
      Figure. Points are spread sideways evenly, in the order given.

    Raises:
      ValueError: no groups.

    Source: matplotlib.

    Example:
      >>> len(strips({"a": [1.0, 2.0], "b": [1.0]}, ylabel="ratio").axes)
      1
    """
    _need("groups", groups)
    figure = new_figure(max(5.2, 1.2 * len(groups)), 3.4)
    axes = figure.subplots()
    for index, values in enumerate(groups.values()):
        values = np.asarray(values, dtype=np.float64)
        places = index + (np.linspace(-0.3, 0.3, values.size) if values.size > 1 else 0)
        axes.plot(places, values, linestyle="", markersize=3, alpha=0.8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(ylabel)
    _scales(axes, False, log)
    return figure


def _legend(figure: Figure, axes: Any) -> None:
    """Inside where a place is free; below, and the picture higher by its rows, where none is."""
    legend = axes.legend()
    figure.draw_without_rendering()
    box = legend.get_window_extent().padded(3)  # pixels: a marker reaches beyond its line
    paths = (line.get_transform().transform_path(line.get_path()) for line in axes.lines)
    if any(path.intersects_bbox(box, filled=False) for path in paths):
        legend.remove()
        handles, labels = axes.get_legend_handles_labels()
        figure.set_figheight(figure.get_figheight() + 0.21 * -(-len(labels) // 2))
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _scales(axes: Any, log_x: bool, log_y: bool) -> None:
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")


def _ticks_at(axes: Any, x: np.ndarray) -> None:
    """Ticks at the values themselves on a logarithmic axis, where they are few and far between."""
    x = x[np.isfinite(x) & (x > 0)]
    steps = np.diff(np.log(x))
    if 1 < len(x) <= 8 and steps.min() > 0.08 * steps.sum():
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())


def _few_ticks(axes: Any, x: np.ndarray, log: bool) -> None:
    """Ticks that do not run into each other; within a decade the axis is plain."""
    shown = x[np.isfinite(x) & (x > 0)]
    if log and shown.size and shown.max() > 10 * shown.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))


def _pair(name: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"{name!r} must have x and y of one axis and equal length, got {x.shape} and {y.shape}."
        )
    return x, y


def _need(name: str, things: Any) -> None:
    if not len(things):
        raise ValueError(f"{name} must hold at least one entry, got none.")
