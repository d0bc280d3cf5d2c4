"""Double-line pictures of diagrams.

Each tensor is a disc with a leg for every weight layer, in their order around it; ribbons join the
legs that Wick's theorem pairs. The two lines of a ribbon are the two indices of the weights, in the
colour of their hidden layer; where they pass through the discs they close into loops, the faces,
each a factor n. Grey lines carry inputs and output and give no n.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams, style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, PathPatch
from matplotlib.path import Path

from poster_jax.core.report import STYLE, new_figure
from poster_jax.finite_width.feynman.correlator import Correlator
from poster_jax.finite_width.feynman.diagrams import Diagram

__all__ = ["draw"]

_DISC = 0.30  # radius of a tensor; the circle on which they stand has radius 1
_HALF_RIBBON = 0.13  # angle at the disc between a ribbon's middle and its lines
_SPACING = 2.5  # of the middles of components
_OUTER = "0.6"


def draw(
    diagrams: Diagram | Sequence[Diagram], *, labels: Sequence[str] | None = None, columns: int = 4
) -> Figure:
    """A diagram, or several side by side, in double-line notation.

    Args:
      diagrams: of `diagrams(...)`, with at most 6 tensors, all of one depth.
      labels: of the tensors, such as ("df", "df"); None numbers them.
      columns: pictures in a row.

    Returns:
      matplotlib Figure; `figure.savefig("diagram.svg")` or `.png`. Above each: multiplicity, power
      of n, and genus where it is not 0.

    Raises:
      ValueError: no diagram, more than 6 tensors, labels that do not fit.
      TypeError: something that is no Diagram.

    Source: 't Hooft 1974 (double-line notation); Dyer and Gur-Ari 2019 (arXiv 1909.11304), section
      3.2.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator, diagrams
      >>> some = list(diagrams(correlator("df.df"), depth=1))
      >>> len(draw(some, labels=["df", "df"]).axes)
      1
    """
    chosen = [diagrams] if isinstance(diagrams, Diagram) else list(diagrams)
    if not chosen:
        raise ValueError("diagrams must hold at least one, got none.")
    for diagram in chosen:
        if not isinstance(diagram, Diagram):
            raise TypeError(f"diagrams must be Diagrams, got {type(diagram).__name__}.")
        size = 2 * len(diagram.matchings[0])
        if size > 6:
            raise ValueError(f"diagrams must have at most 6 tensors to be drawn, got {size}.")
        if labels is not None and len(labels) != size:
            raise ValueError(f"labels must be {size}, one a tensor, got {len(labels)}.")
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    with style.context(STYLE):
        figure = new_figure(2.3 * columns, 2.55 * rows + 0.3)
        grid = figure.subplots(rows, columns, squeeze=False)
        colours = [entry["color"] for entry in rcParams["axes.prop_cycle"]]
        for axes, diagram in zip(grid.flat, chosen, strict=False):
            _Picture(axes, diagram, colours).draw(labels)
        for axes in grid.flat[len(chosen) :]:
            axes.remove()
        depth = max(len(diagram.faces) for diagram in chosen)
        lines = [Line2D([], [], color=colours[h], marker="") for h in range(depth)]
        names = ["hidden layer" if depth == 1 else f"hidden layer {h + 1}" for h in range(depth)]
        figure.legend(
            [*lines, Line2D([], [], color=_OUTER, marker="")],
            [*names, "inputs, output"],
            loc="outside lower center",
            ncols=depth + 1,
        )
    return figure


class _Picture:
    """One diagram on one pair of axes."""

    def __init__(self, axes: Any, diagram: Diagram, colours: Sequence[str]) -> None:
        self.axes, self.diagram, self.colours = axes, diagram, colours
        self.num_layers = len(diagram.matchings)
        self.size = 2 * len(diagram.matchings[0])
        self.turns: dict[int, int] = {}
        self.outward: dict[int, float] = {}
        self.middle: dict[int, np.ndarray] = {}
        self._arrange()

    def draw(self, labels: Sequence[str] | None) -> None:
        for layer, matching in enumerate(self.diagram.matchings):
            for i, j in matching:
                self._ribbon(layer, i, j)
        for tensor in range(self.size):
            self._disc(tensor, str(tensor + 1) if labels is None else labels[tensor])
        self.axes.set_aspect("equal")
        self.axes.set_xlim(-self.reach, self.reach)
        self.axes.set_ylim(-self.reach, self.reach)
        self.axes.set_axis_off()
        power = self.diagram.exponent
        genus = f", genus {self.diagram.genus}" if self.diagram.genus else ""
        times = f"{self.diagram.multiplicity} " if self.diagram.multiplicity != 1 else ""
        self.axes.set_title(rf"{times}$n^{{{power}}}${genus}")

    def _arrange(self) -> None:
        """Components side by side; in each, the round of tensors whose ribbons are straightest.

        Chosen with it is which way each tensor has its legs: a ribbon is flat where its two ends go
        round in opposite ways, and twisted where not.
        """
        edges = tuple(pair for matching in self.diagram.matchings for pair in matching)
        clusters = Correlator(("x",) * self.size, edges).cluster_graph().clusters
        for number, cluster in enumerate(clusters):
            shift = _SPACING * (number - (len(clusters) - 1) / 2)
            self._arrange_one(cluster, np.array([0.0, -shift]))
        self.reach = 1.75 + _SPACING * (len(clusters) - 1) / 2

    def _arrange_one(self, cluster: tuple[int, ...], middle: np.ndarray) -> None:
        first, *others = cluster
        best, chosen = np.inf, None
        for rest in itertools.permutations(others):
            for turns in itertools.product((1, -1), repeat=len(others)):
                self.turns.update(zip(cluster, (1, *turns), strict=True))
                for at, tensor in enumerate((first, *rest)):
                    self.outward[tensor] = 2 * np.pi * at / len(cluster) + np.pi
                    self.middle[tensor] = middle
                bent = sum(
                    self._bend(layer, i, j) + self._bend(layer, j, i)
                    + (self.turns[i] == self.turns[j])
                    for layer, matching in enumerate(self.diagram.matchings)
                    for i, j in matching
                    if i in cluster
                )  # fmt: skip
                if bent < best - 1e-9:
                    best, chosen = bent, (dict(self.turns), dict(self.outward))
        assert chosen is not None
        self.turns, self.outward = chosen

    def _bend(self, layer: int, tensor: int, other: int) -> float:
        """From 0, where a leg points at its partner, to 2."""
        x, y = self._centre(other) - self._centre(tensor)
        return 1 - np.cos(self._angle(tensor, layer) - np.arctan2(y, x))

    def _centre(self, tensor: int) -> np.ndarray:
        angle = self.outward[tensor]
        return self.middle[tensor] + np.array([np.cos(angle), np.sin(angle)])

    def _angle(self, tensor: int, layer: int) -> float:
        """Where a leg leaves the disc: they fan out towards the middle of the picture."""
        fan = np.deg2rad(230) / max(self.num_layers, 2)
        middle = (self.num_layers - 1) / 2
        return self.outward[tensor] + np.pi + self.turns[tensor] * (layer - middle) * fan

    def _end(self, tensor: int, layer: int, side: int) -> np.ndarray:
        """Where a line of a ribbon meets the disc; side -1 carries the index before the layer."""
        angle = self._angle(tensor, layer) + self.turns[tensor] * side * _HALF_RIBBON * 1.6
        return self._centre(tensor) + _DISC * np.array([np.cos(angle), np.sin(angle)])

    def _ribbon(self, layer: int, i: int, j: int) -> None:
        reach = 0.5 * np.linalg.norm(self._centre(i) - self._centre(j))
        for side in (-1, 1):
            start, end = self._end(i, layer, side), self._end(j, layer, side)
            pull = [
                reach * np.array([np.cos(a), np.sin(a)])
                for a in (self._angle(i, layer), self._angle(j, layer))
            ]
            self._curve([start, start + pull[0], end + pull[1], end], self._colour(layer, side))

    def _disc(self, tensor: int, label: str) -> None:
        centre = self._centre(tensor)
        self.axes.add_patch(Circle(centre, _DISC, facecolor="0.96", edgecolor="none", zorder=2))
        corners = [(h, h + 1) for h in range(self.num_layers - 1)]
        for before, after in corners:
            start, end = self._end(tensor, before, 1), self._end(tensor, after, -1)
            self._curve([start, (start + centre) / 2, (end + centre) / 2, end],
                        self._colour(before, 1))  # fmt: skip
        start, end = self._end(tensor, self.num_layers - 1, 1), self._end(tensor, 0, -1)
        out = np.array([np.cos(self.outward[tensor]), np.sin(self.outward[tensor])])
        away = centre + 0.75 * _DISC * out
        self._curve([start, away + (start - centre), away + (end - centre), end], _OUTER)
        self.axes.text(*(centre + 0.45 * _DISC * out), label, ha="center", va="center",
                       fontsize=8, zorder=4)  # fmt: skip

    def _colour(self, layer: int, side: int) -> str:
        """Of the index before (-1) or after (1) a weight layer."""
        index = layer + (side > 0)
        return _OUTER if index in (0, self.num_layers) else self.colours[index - 1]

    def _curve(self, points: Sequence[np.ndarray], colour: str) -> None:
        path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        patch = PathPatch(path, facecolor="none", edgecolor=colour, linewidth=1.5, zorder=3)
        self.axes.add_patch(patch)
