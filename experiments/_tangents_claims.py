"""The claims C1 to C6 of `neural_tangents`, each with the rule written before the measurement."""

import numpy as np

from experiments._program import Run
from experiments._tangents_statistics import (
    AT_TIMES,
    BLOCKS,
    Results,
    coverage,
    gains,
    kernel_slopes,
    linear_slopes,
    order,
    shares,
)
from experiments._wide_networks import NARROW
from poster_jax.core.claims import Claim, Interval, format_number


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


def _ends(interval: Interval, scale: float = 1.0) -> tuple[float, float] | None:
    if np.isnan(interval.low):
        return None
    return scale * interval.low, scale * interval.high


def _text(interval: Interval) -> str:
    low, high = (format_number(end) for end in (interval.low, interval.high))
    return f"{format_number(interval.estimate)} ({low} to {high})"
