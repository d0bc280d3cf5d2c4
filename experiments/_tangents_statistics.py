"""The numbers of a run of `neural_tangents`, and what follows from them: shares, slopes, gains."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments._image_kernels import KINDS
from experiments._program import Run
from experiments._wide_networks import TIMES
from poster_jax.core.claims import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    paired_difference,
)

BLOCKS = 50  # groups of draws whose means the bootstrap resamples
AT_TIMES = np.array(TIMES) - 1


class Results(NamedTuple):
    """The numbers of a run.

    Attributes:
      ensembles: width -> outputs (networks, times, points, functions) and train_loss.
      kernels: (kind, width) -> bias and distance of each draw.
      departures: (scaling, width) -> distance of each network from its linearisation.
      theory: the infinite ensemble.
      of_theory: (ensembles, networks, TIMES, points, functions), drawn from it.
      curves: (network, kind) -> accuracy, shuffled and error, each (draws, sizes).
      five_lines: what five lines predict.
      devices: the comparison of one device with several.
    """

    ensembles: dict[int, dict[str, Any]]
    kernels: dict[tuple[str, int], dict[str, Any]]
    departures: dict[tuple[str, int], Any]
    theory: Any
    of_theory: Any
    curves: dict[tuple[str, str], dict[str, Any]]
    five_lines: dict[str, Any]
    devices: dict[str, Any]


def coverage(outputs: Any, mean: Any, variance: Any) -> np.ndarray:
    """Whether the 95 % intervals of ensemble mean and variance contain the theory.

    The mean's is Student's; the variance's is that of its logarithm, whose standard error follows
    from the fourth moment, so that no normal outputs are assumed.

    Args:
      outputs: (networks, times, points, functions).
      mean: (times, points, functions).
      variance: (times, points).

    Returns:
      bool (2, times, points, functions); False where outputs are not finite.
    """
    outputs = np.asarray(outputs, np.float64)
    num = len(outputs)
    found, squares = outputs.mean(0), outputs.var(0, ddof=1)
    fourth = np.mean((outputs - found) ** 4, axis=0) / squares**2
    reach = stats.t.ppf(0.975, num - 1) * np.sqrt(squares / num)
    error = stats.norm.ppf(0.975) * np.sqrt(np.maximum(fourth - 1, 0) / num)
    return np.stack(
        [np.abs(found - mean) < reach, np.abs(np.log(squares / variance[..., None])) < error]
    )


def shares(results: Results) -> dict[int, np.ndarray]:
    """Width -> (2, TIMES): share of intervals of mean and variance that contain the theory."""
    theory = results.theory
    known = (theory.mean[AT_TIMES], theory.variance[AT_TIMES])
    return {
        width: coverage(found["outputs"][:, AT_TIMES], *known).mean((2, 3))
        for width, found in results.ensembles.items()
    }


def slope(widths: Sequence[int], values: Any) -> Any:
    """Exponents: of `values` (..., widths) as a power of the width, by least squares of logs."""
    x = np.log(np.asarray(widths, np.float64))
    x = x - x.mean()
    return np.log(np.abs(values)) @ x / np.sum(x**2)


def slope_interval(
    run: Run, widths: Sequence[int], draws: Any, reduce: Callable[[Any], Any]
) -> Interval:
    """The exponent with its interval; `draws` (n, widths) are resampled, `reduce` is of means."""
    draws = np.asarray(draws, np.float64)

    def statistic(rows: Any, axis: int = -1) -> Any:
        rows = np.moveaxis(np.asarray(rows).astype(int), axis, -1)
        return slope(widths, reduce(draws[rows].mean(-2)))

    options = {"num_resamples": run.settings.num_resamples, "seed": run.seed}
    return bootstrap_interval(np.arange(len(draws)), statistic=statistic, **options)


def kernel_slopes(run: Run, results: Results) -> dict[str, Interval]:
    """Exponents of the mean's error and of the spread of finite kernels."""
    found = {}
    for kind in dict.fromkeys(kind for kind, _ in results.kernels):
        widths = [width for of, width in results.kernels if of == kind]
        for what, reduce in (("bias", np.abs), ("distance", np.sqrt)):
            draws = np.stack([_groups(results.kernels[kind, w][what]) for w in widths], axis=1)
            found[f"{kind}, {what}"] = slope_interval(run, widths, draws, reduce)
    return found


def linear_slopes(run: Run, results: Results) -> dict[str, Interval]:
    """Exponents of the distance between true and linearised training."""
    found = {}
    for kind in dict.fromkeys(kind for kind, _ in results.departures):
        widths = [width for of, width in results.departures if of == kind]
        squares = np.stack([results.departures[kind, w] ** 2 for w in widths], axis=1)
        found[kind] = slope_interval(run, widths, squares, np.sqrt)
    return found


def gains(run: Run, results: Results, what: str = "accuracy") -> dict[Any, list[PairedDifference]]:
    """(network, kind) -> by how much accuracy rises from each size to the next, over draws."""
    options = {"num_resamples": run.settings.num_resamples, "seed": run.seed}
    return {
        case: [
            paired_difference(found[what][:, k + 1], found[what][:, k], **options)
            for k in range(found[what].shape[1] - 1)
        ]
        for case, found in results.curves.items()
    }


def order(run: Run, results: Results) -> dict[str, PairedDifference]:
    """By how much the later of two networks is ahead at the largest size, over draws."""
    names = run.settings.networks
    options = {"num_resamples": run.settings.num_resamples, "seed": run.seed}
    return {
        f"{b} − {a}, {kind}": paired_difference(
            results.curves[b, kind]["accuracy"][:, -1],
            results.curves[a, kind]["accuracy"][:, -1],
            **options,
        )
        for a, b in itertools.pairwise(names)
        for kind in KINDS
    }


def _groups(values: Any) -> np.ndarray:
    """Means of BLOCKS groups of draws."""
    return np.asarray(values, np.float64).reshape(BLOCKS, -1).mean(1)
