"""Pictures of noise that only this poster has: lines with a surrogate band, quantiles, layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from scipy import stats

from poster_jax.core.report.picture import STYLE, new_figure

__all__ = ["quantiles", "with_bands"]


def with_bands(panels: Sequence[tuple[str, Mapping[str, Any]]], steps: Sequence[int]) -> Figure:
    """Lines over the steps, one a batch size, and what Gaussian surrogates give as a band.

    Args:
      panels: (label of the axis, name -> (values, low, high)), each (steps,).
      steps: of the checkpoints; a step 0 stands left of the first one.
    """
    with style.context(STYLE):
        figure = new_figure(9.0, 4.0)
        grid = figure.subplots(1, len(panels))
        for axes, (label, series) in zip(grid, panels, strict=True):
            for name, (values, *_) in series.items():
                axes.plot(range(len(steps)), values, label=name)
            low = np.min([low for _, low, _ in series.values()], axis=0)
            high = np.max([high for *_, high in series.values()], axis=0)
            axes.fill_between(
                range(len(steps)),
                low,
                high,
                color="0.5",
                alpha=0.3,
                linewidth=0,
                label="Gaussian surrogates",
            )
            axes.set_xticks(range(len(steps)), [f"{step:,}" for step in steps])
            axes.set(xlabel="step", ylabel=label, ylim=(-0.03, None))
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)
        return figure


def quantiles(panels: Mapping[str, Any]) -> Figure:
    """Normal quantile plots of some projections a panel, each centred and scaled.

    Args:
      panels: title -> (projections, M).
    """
    with style.context(STYLE):
        figure = new_figure(2.6 * len(panels), 3.1)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, samples) in zip(grid, panels.items(), strict=True):
            num = np.shape(samples)[1]
            normal = stats.norm.ppf((np.arange(1, num + 1) - 0.375) / (num + 0.25))
            for index, sample in enumerate(np.asarray(samples, np.float64)):
                ordered = np.sort((sample - sample.mean()) / (sample.std() or 1))
                axes.plot(normal, ordered, linestyle="", marker=".", markersize=3,
                          label=f"projection {index + 1}")  # fmt: skip
            axes.plot(normal, normal, color="0.3", linewidth=1, marker="", label="normal")
            axes.set_title(title)
            axes.set_xlabel("normal quantile")
        grid[0].set_ylabel("quantile of the projection")
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=5, markerscale=3)
        return figure
