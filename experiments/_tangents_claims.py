"""The claims C1 to C6 of `neural_tangents`, each with the rule written before the measurement."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments._image_kernels import KINDS
from experiments._program import Run
from experiments._wide_networks import NARROW, TIMES
from poster_jax.core.claims import (
    Claim,
    Interval,
    PairedDifference,
    bootstrap_interval,
    format_number,
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


def claims_of(run: Run, results: Results) -> list[Claim]:
    """All of them, in the order of the card."""
    return [
        _ensemble_claim(results),
        _size_claim(run, results),
        _order_claim(run, results),
        _lines_claim(results),
        _devices_claim(results),
        *_kernel_claims(run, results),
        _linear_claim(run, results),
    ]


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


def _ensemble_claim(results: Results) -> Claim:
    found = shares(results)
    wide = max(found)
    num_networks = len(results.ensembles[wide]["outputs"])
    known = (results.theory.mean[AT_TIMES], results.theory.variance[AT_TIMES])
    null = np.array([coverage(outputs, *known).mean() for outputs in results.of_theory])
    low, high = np.quantile(null, [0.025, 0.975])
    narrow = found[NARROW].mean()
    outputs = results.ensembles[wide]["outputs"]
    return Claim(
        poster="neural_tangents",
        name="C1",
        claim="An ensemble of wide networks under gradient descent has the mean and the variance "
        "of the infinite one at every time.",
        paper="the bands of 100 networks and of theory lie on each other (figure 1)",
        measured=found[wide].mean(),
        unit=f"share of intervals that contain the theory, width {wide}",
        interval=(low, high),
        interval_of="where ensembles drawn from the theory itself lie, central 95 %",
        rule="at 5 times, 95 % intervals of ensemble mean and variance contain the theory in at "
        f"least 90 % of the points, and those of width {NARROW} do not",
        holds=bool(found[wide].mean() >= 0.9 > narrow),
        control=f"width {NARROW}: {format_number(narrow)} of the intervals; of 100 ensembles drawn "
        f"from the theory {np.sum(null >= 0.9)} pass",
        num_samples=num_networks * outputs.shape[-1],
        num_seeds=num_networks,
        num_nonfinite=int(np.sum(~np.isfinite(outputs).all(axis=(1, 2)))),
    )


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


def _size_claim(run: Run, results: Results) -> Claim:
    every = [g.interval for rows in gains(run, results).values() for g in rows]
    worst = min(every, key=lambda interval: interval.estimate)
    losses = sum(interval.high < 0 for interval in every)
    falls = sum(interval.estimate < 0 for interval in every)
    shuffled = np.mean([found["shuffled"][:, -1].mean() for found in results.curves.values()])
    ends = np.array([found["accuracy"][:, [0, -1]].mean(0) for found in results.curves.values()])
    sizes, draws = run.settings.sizes, run.settings.num_draws_of_x
    return Claim(
        poster="neural_tangents",
        name="C2 (size)",
        claim="The accuracy of every kernel grows with the training set.",
        paper="it grows for all networks, to 45,000 images of CIFAR-10 (figure 2)",
        measured=100 * worst.estimate,
        unit="percentage points, the smallest gain from one size to the next",
        interval=_ends(worst, 100),
        interval_of=f"95 % bootstrap over {draws} draws of the training set",
        rule="every kernel gains from the smallest to the largest set, and no interval of a step "
        "lies below 0",
        holds=bool(np.isfinite(worst.estimate) and losses == 0 and np.all(ends[:, 1] > ends[:, 0])),
        control=f"with shuffled labels {format_number(100 * shuffled)} % at {sizes[-1]}; "
        f"{falls} of {len(every)} mean steps fall",
        num_samples=len(every) * draws,
        num_seeds=draws,
    )


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


def _order_claim(run: Run, results: Results) -> Claim:
    found, sizes = order(run, results), run.settings.sizes
    worst = min(found.values(), key=lambda d: d.interval.estimate).interval
    means = {
        f"{name}, {kind}": 100 * results.curves[name, kind]["accuracy"][:, -1].mean()
        for name, kind in results.curves
    }
    draws = run.settings.num_draws_of_x
    return Claim(
        poster="neural_tangents",
        name="C2 (order)",
        claim=f"{' < '.join(run.settings.networks)} in accuracy, for NNGP and NTK.",
        paper="FC < CNN without pooling < WideResNet with pooling on CIFAR-10 (figure 2)",
        measured=100 * worst.estimate,
        unit=f"percentage points, the smallest of {len(found)} differences at {sizes[-1]} images",
        interval=_ends(worst, 100),
        interval_of=f"95 % bootstrap over {draws} draws of the training set",
        rule="the lower end of every difference's interval is above 0",
        holds=bool(all(d.interval.low > 0 for d in found.values())),
        control="accuracies: "
        + ", ".join(f"{name} {format_number(value)} %" for name, value in means.items()),
        num_samples=draws,
        num_seeds=draws,
    )


def _lines_claim(results: Results) -> Claim:
    found = results.five_lines
    return Claim(
        poster="neural_tangents",
        name="C3",
        claim="A network and its inference take five lines.",
        paper="so in the abstract's words: fast and easy, high-level (section 2)",
        measured=found["lines"],
        unit="lines, imports among them",
        interval=None,
        interval_of="",
        rule="five lines run, and their mean is within 1e-3 of plain numpy's",
        holds=bool(found["lines"] <= 5 and found["difference"] < 1e-3),
        control=f"largest difference from numpy {format_number(found['difference'])}",
    )


def _devices_claim(results: Results) -> Claim:
    found = results.devices
    seconds = [
        f"{name.split(', ', 1)[1]} device(s) {format_number(value)} s"
        for name, value in found.items()
        if name.startswith("seconds")
    ]
    return Claim(
        poster="neural_tangents",
        name="C4",
        claim=f"One program's kernels on 1 and on {found['devices']} devices are the same.",
        paper="tiles go to all devices, near linear in their number on accelerators (section 3.2)",
        measured=found["difference"],
        unit="largest difference over the largest entry",
        interval=None,
        interval_of="",
        rule="at most 4 roundings of float32, 4.8e-7",
        holds=bool(found["difference"] <= 4.8e-7 and found["devices"] > 1),
        control=f"the same kernel turned by one column differs by {format_number(found['control'])}"
        f"; {'; '.join(seconds)} (no claim is made of time on forced CPU devices)",
    )


def _kernel_claims(run: Run, results: Results) -> list[Claim]:
    found = kernel_slopes(run, results)
    draws = len(next(iter(results.kernels.values()))["bias"])
    widths = [w for kind, w in results.kernels if kind == "two layers"]
    one_layer = [results.kernels["one layer", w]["bias"] for w in widths]
    z = max(abs(b.mean()) / (b.std(ddof=1) / np.sqrt(b.size)) for b in one_layer)
    two_layers = [results.kernels["two layers", w]["bias"] for w in widths]
    largest = max(abs(b.mean()) / (b.std(ddof=1) / np.sqrt(b.size)) for b in two_layers)
    shared = {
        "poster": "neural_tangents",
        "paper": "kernels of finite networks converge to the limit; the rate is not stated",
        "unit": "exponent of the width",
        "interval_of": f"95 % bootstrap over {BLOCKS} groups of draws",
        "num_samples": draws * len(widths),
        "num_seeds": draws,
    }
    spread, bias = found["two layers, distance"], found["two layers, bias"]
    kept = found["second narrow, distance"]
    within = lambda interval, centre, reach: bool(  # noqa: E731
        centre - reach < interval.low and interval.high < centre + reach
    )
    return [
        Claim(
            **shared,
            name="C5 (spread)",
            claim="The NTK of a random network scatters around its limit as 1/√width.",
            measured=spread.estimate,
            interval=_ends(spread),
            rule="the interval lies within -0.5 ± 0.05",
            holds=within(spread, -0.5, 0.05),
            control=f"with the second layer kept at {NARROW} units: {_text(kept)}",
            num_nonfinite=spread.num_nonfinite,
        ),
        Claim(
            **shared,
            name="C5 (mean)",
            claim="The mean of such kernels approaches the limit as 1/width.",
            measured=bias.estimate,
            interval=_ends(bias),
            rule="the interval lies within -1 ± 0.25",
            holds=within(bias, -1, 0.25),
            control=f"the largest of {len(widths)} errors is {format_number(largest)} standard "
            "errors (below 3 no rate can be fitted); with one layer, where it is exact, "
            f"{format_number(z)}",
            num_nonfinite=bias.num_nonfinite,
        ),
    ]


def _linear_claim(run: Run, results: Results) -> Claim:
    found = linear_slopes(run, results)
    plain, rich = found["plain"], found["rich"]
    num = run.settings.num_linearised
    return Claim(
        poster="neural_tangents",
        name="C6",
        claim="The linearised network follows true training better as width grows.",
        paper="exact in the limit; at most 1/√width away (Lee et al. 2019), 1/width expected from "
        "Dyer and Gur-Ari 2019",
        measured=plain.estimate,
        unit="exponent of the width",
        interval=_ends(plain),
        interval_of=f"95 % bootstrap over {num} networks a width",
        rule="the upper end of the interval is below -0.5",
        holds=bool(plain.high < -0.5),
        control="in the scaling that moves features at every width (outputs / √width, rate x "
        f"width): {_text(rich)}",
        num_samples=num * len(run.settings.linear_widths),
        num_seeds=num,
        num_nonfinite=plain.num_nonfinite,
    )


def _groups(values: Any) -> np.ndarray:
    """Means of BLOCKS groups of draws."""
    return np.asarray(values, np.float64).reshape(BLOCKS, -1).mean(1)


def _ends(interval: Interval, scale: float = 1.0) -> tuple[float, float] | None:
    if np.isnan(interval.low):
        return None
    return scale * interval.low, scale * interval.high


def _text(interval: Interval) -> str:
    low, high = (format_number(end) for end in (interval.low, interval.high))
    return f"{format_number(interval.estimate)} ({low} to {high})"
