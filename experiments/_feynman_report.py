"""What `feynman_diagrams` says of its measurements: claims C1 to C4, numbers and pictures."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams, style
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from scipy import stats

from experiments import _wide_correlators as wide
from experiments._program import Findings, Run
from poster_jax.core import report
from poster_jax.core.claims import Claim, format_number
from poster_jax.finite_width import feynman

POSTER = "feynman_diagrams"


def findings(
    run: Run, populations: dict[str, wide.Population], training: wide.Training
) -> Findings:
    """Claims in the order of the card, then pictures."""
    for name, found in populations.items():
        for label, fit in found.fitted.items():
            run.log(network=name, correlator=label, widths=found.measured[label].widths,
                    mean=found.measured[label].mean, stderr=found.measured[label].stderr,
                    exponent=fit.value, interval=fit.interval, plain=fit.plain, bound=fit.bound,
                    verdict=fit.verdict, misfit=fit.misfit,
                    effective_sample_size=found.measured[label].effective_sample_size)  # fmt: skip
    claims = [
        _bound_claim(populations),
        _theorem_claim(run, populations),
        *_training_claims(training),
        _tight_claim(populations),
    ]
    lead = (
        f"{len(wide.CORRELATORS)} correlation functions of a network and its derivatives were "
        f"measured over random networks of {len(run.settings.widths)} widths, for "
        f"{len(populations)} kinds of network, and their exponents fitted with the next order in "
        "1/n. The exact polynomials of linear networks and of one hidden layer stand beside them, "
        "and gradient flow beside its expansion to order 1/n."
    )
    sections = [_exponents(populations), _curves(populations), _diagrams(), _dynamics(training)]
    return Findings("Asymptotics of wide networks from Feynman diagrams", lead, claims, sections)


def _fits(populations: dict[str, wide.Population]) -> list[tuple[str, str, Any]]:
    return [
        (name, label, fit)
        for name, found in populations.items()
        for label, fit in found.fitted.items()
    ]


def _count(populations: dict[str, wide.Population]) -> str:
    verdicts = [fit.verdict for *_, fit in _fits(populations)]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in feynman.VERDICTS)


def _networks(populations: dict[str, wide.Population]) -> tuple[int, int]:
    """How many networks were drawn, and how many were not finite."""
    ones = [next(iter(found.measured.values())) for found in populations.values()]
    return sum(int(m.num_networks.sum()) for m in ones), sum(
        int(m.num_nonfinite.sum()) for m in ones
    )


def _bound_claim(populations: dict[str, wide.Population]) -> Claim:
    every = _fits(populations)
    verdicts = [fit.verdict for *_, fit in every]
    decided = sum(v in ("tight", "loose", "zero") for v in verdicts)
    known = [fit for *_, fit in every if np.isfinite(fit.value)]
    stricter = sum(fit.interval[0] - fit.bound + 1 > 0.1 for fit in known)
    violated = [f"{label} of {name}" for name, label, fit in every if fit.verdict == "violated"]
    num, bad = _networks(populations)
    return Claim(
        poster=POSTER,
        name="C1",
        claim="Correlators fall with width at least as fast as the cluster graph says: C = O(n^s), "
        "s = n_e + n_o / 2 - m / 2.",
        paper="a conjecture; measured exponents agree for linear, ReLU and tanh networks (table 1)",
        measured=len(violated),
        unit=f"exponents above their bound, of {len(every)} {', '.join(violated)}".strip(),
        interval=None,
        interval_of="",
        rule="no 95 % interval (bootstrap over networks) lies above its bound + 0.1, and at least "
        "half of them end at or below it",
        holds=bool(not violated and decided >= len(every) / 2),
        control=f"with every bound lower by one, {stricter} of {len(known)} would be above; "
        f"{_count(populations)}",
        num_samples=num,
        num_seeds=num,
        num_nonfinite=bad,
    )


def _theorem_claim(run: Run, populations: dict[str, wide.Population]) -> Claim:
    exact = [
        (feynman.linear_polynomial(c, depth=depth), c)
        for depth in range(1, run.settings.theorem_depth + 1)
        for c in wide.small_correlators(depth + 1)
    ]
    exact += [
        (polynomial, wide.CORRELATORS[label])
        for found in populations.values()
        for label, polynomial in found.exact.items()
    ]
    broken = [c for polynomial, c in exact if _exponent(polynomial) > c.exponent_bound()]
    z = _deviations(populations)
    num, bad = _networks(populations)
    return Claim(
        poster=POSTER,
        name="C2",
        claim="The bound is a theorem for deep linear networks and for one hidden layer.",
        paper="proved (theorem 1 and section 4)",
        measured=len(broken),
        unit=f"violations among {len(exact)} exact polynomials in 1/n",
        interval=None,
        interval_of="",
        rule="no violation among all correlators of up to four tensors of linear networks of "
        f"{run.settings.theorem_depth} hidden layers or fewer, and the listed ones of each "
        "activation with one",
        holds=not broken,
        control=f"of {len(z)} measured values of these networks {np.sum(np.abs(z) > 3)} are more "
        f"than 3 standard errors from the polynomial (by chance {0.0027 * len(z):.1f}); the "
        f"largest is {np.max(np.abs(z), initial=0):.1f}",
        num_samples=num,
        num_nonfinite=bad,
    )


def _exponent(polynomial: feynman.Polynomial) -> float:
    """Coefficients of quadrature that are rounding are none."""
    sizes = {sum(powers): abs(float(value)) for powers, value in polynomial.terms.items()}
    top = max(sizes.values(), default=0.0)
    return -min((power for power, size in sizes.items() if size > 1e-9 * top), default=np.inf)


def _deviations(populations: dict[str, wide.Population]) -> np.ndarray:
    found = []
    for population in populations.values():
        for label, polynomial in population.exact.items():
            m = population.measured[label]
            for width, mean, stderr in zip(m.widths, m.mean, m.stderr, strict=True):
                exact = float(polynomial(n=int(width)))
                if stderr > 1e-9 * abs(mean):  # not the same number in every network
                    found.append((mean - exact) / stderr)
    return np.array(found)


class _Slope(NamedTuple):
    """Of log median over log width, with the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = map(format_number, self)
        return f"n^{value} ({low} to {high})"


def _slope(training: wide.Training, values: Any) -> _Slope:
    """At the last time. Medians: the means of second-order errors are those of a few networks."""
    rows = [row[np.isfinite(row)] for row in values[:, :, -1]]
    logs = np.log(training.widths) - np.log(training.widths).mean()

    def slope(*rows: Any, axis: int = -1) -> Any:
        medians = np.stack([np.median(row, axis=axis) for row in rows])
        return np.tensordot(logs / np.sum(logs**2), np.log(medians), axes=1)

    found = stats.bootstrap(
        rows, slope, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return _Slope(float(slope(*rows)), float(found.low), float(found.high))


def _training_claims(training: wide.Training) -> list[Claim]:
    moved, error = (_slope(training, a) for a in (training.moved, training.theta_error))
    order0, order1 = (_slope(training, a) for a in (training.order0, training.order1))
    count = training.moved.shape[1]
    shared = {
        "poster": POSTER,
        "unit": "exponent of the width",
        "interval_of": f"95 % bootstrap over {count} networks a width",
        "num_samples": training.moved[:, :, 0].size,
        "num_seeds": count,
        "num_nonfinite": int(np.sum(~np.isfinite(training.moved[:, :, -1]))),
    }
    return [
        Claim(
            **shared,
            name="C3 (kernel)",
            claim="The neural tangent kernel changes by O(1/n) in training.",
            paper="so by theorem and experiment (section 4); square roots of n by Lee et al. 2019",
            measured=moved.value,
            interval=moved[1:],
            rule="the interval of the slope of the median change lies within -1 ± 0.2",
            holds=bool(moved.low >= -1.2 and moved.high <= -0.8),
            control=f"outputs leave those of a constant kernel as {order0}",
        ),
        Claim(
            **shared,
            name="C3 (expansion)",
            claim="Kernel and outputs in training can be computed order by order in 1/n.",
            paper="to order 1/n from O_2, O_3 and O_4 at the start (section 4)",
            measured=error.value,
            interval=error[1:],
            rule="the upper end of the slope of the first-order kernel's median error is at most "
            "-1.5",
            holds=bool(error.high <= -1.5),
            control=f"to order 0, with the kernel constant: {moved}; outputs to order 1: {order1}",
        ),
    ]


def _tight_claim(populations: dict[str, wide.Population]) -> Claim:
    verdicts = [fit.verdict for *_, fit in _fits(populations)]
    tight, loose = verdicts.count("tight"), verdicts.count("loose")
    num, bad = _networks(populations)
    looser = sorted({label for _, label, fit in _fits(populations) if fit.verdict == "loose"})
    return Claim(
        poster=POSTER,
        name="C4",
        claim="The bound is often tight, and sometimes not.",
        paper="table 1: most exponents are the bound, some lie below",
        measured=tight / max(1, tight + loose),
        unit="share of tight bounds among those decided",
        interval=None,
        interval_of="",
        rule="at least one bound is tight (the interval reaches it), and at least one is not",
        holds=bool(tight and loose),
        control=f"{_count(populations)}; loose: {', '.join(looser) or 'none'}",
        num_samples=num,
        num_nonfinite=bad,
    )


def _exponents(populations: dict[str, wide.Population]) -> report.Section:
    values = [[fit.value for fit in found.fitted.values()] for found in populations.values()]
    bounds = [c.exponent_bound() for c in wide.CORRELATORS.values()]
    columns = [f"{label}: {bound}" for label, bound in zip(wide.CORRELATORS, bounds, strict=True)]
    figure = report.heat_map(
        values, rows=list(populations), columns=columns, label="exponent s", fmt="{:.2f}"
    )
    picture = report.picture(
        figure,
        name="exponents",
        alt="Heat map of fitted exponents, networks by correlators, the bound in each column's "
        "name; nearly all are at or below it.",
        caption="Fitted exponents, the bound behind each correlator's name. nan: zero in every "
        "network, or below 3 standard errors at all but two widths.",
        wide=True,
    )
    numbers = [
        report.number(
            f"{verdict} bounds", sum(f.verdict == verdict for *_, f in _fits(populations)), meaning
        )
        for verdict, meaning in {
            "tight": "Pairs of correlator and network whose interval reaches the bound.",
            "loose": "Pairs whose interval lies below the bound.",
            "violated": "Pairs whose interval lies above the bound + 0.1.",
            "undecided": "Pairs whose interval is too wide, or that are lost in noise.",
            "zero": "Pairs that are zero in every network.",
        }.items()
    ]
    text = (
        "s of C = a n^s (1 + b / n), by weighted least squares. The NTK of a linear network does "
        "not depend on the width at all, so that its 0 says nothing; the others do."
    )
    return report.Section("Exponents", text, numbers, [picture])


def _curves(populations: dict[str, wide.Population]) -> report.Section:
    kinds = list(dict.fromkeys(name.split(",")[0] for name in populations))
    rows = -(-len(wide.CORRELATORS) // 3)
    with style.context(report.STYLE):
        figure = report.new_figure(9.0, 2.5 * rows + 0.8)
        colours = [entry["color"] for entry in rcParams["axes.prop_cycle"]]
        grid = figure.subplots(rows, 3, squeeze=False)
        for axes, (label, c) in zip(grid.flat, wide.CORRELATORS.items(), strict=False):
            ends = [np.inf, 1.0]
            for name, found in populations.items():
                m, fit = found.measured[label], found.fitted[label]
                if not fit.used.any():
                    continue
                n, size = m.widths[fit.used], np.abs(m.mean[fit.used])
                kind = kinds.index(name.split(",")[0])
                axes.errorbar(n, size / size[0], m.stderr[fit.used] / size[0], markersize=3,
                              linewidth=0.8, color=colours[kind % len(colours)])  # fmt: skip
                ends = [min(ends[0], n[0]), max(ends[1], n[-1])]
            bound = float(c.exponent_bound())
            if np.isfinite(ends[0]):
                axes.plot(ends, (np.array(ends) / ends[0]) ** bound, color="0.3", linestyle="--",
                          marker="", linewidth=1.5)  # fmt: skip
            axes.set(xscale="log", yscale="log", title=f"{label}: bound {bound:g}")
            if bound == 0:
                axes.set_ylim(0.3, 3)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        for axes in grid.flat[len(wide.CORRELATORS) :]:
            axes.remove()
        for axes in grid[-1]:
            axes.set_xlabel("width")
        lines = [Line2D([], [], color=colours[k % len(colours)]) for k in range(len(kinds))]
        dashed = Line2D([], [], color="0.3", linestyle="--", marker="")
        figure.legend([*lines, dashed], [*kinds, "bound"], loc="outside lower center", ncols=7)
    picture = report.picture(
        figure,
        name="correlators",
        alt="Nine log-log panels of the size of a correlator over width, each with a dashed line "
        "of the bound's slope; the curves fall as fast or faster.",
        caption="|C| over its value at the smallest width, with standard errors, at the widths "
        "that enter the fit; dashed, the slope of the bound. One line for each depth.",
        wide=True,
    )
    return report.Section("Correlators over width", "Each line is a network.", (), [picture])


def _diagrams() -> report.Section:
    chosen = list(feynman.diagrams(wide.CORRELATORS["df.df df.df"], depth=2, up_to_symmetry=True))
    chosen.sort(key=lambda diagram: (-diagram.exponent, diagram.genus))
    polynomial = feynman.linear_polynomial(wide.CORRELATORS["df.df df.df"], depth=2)
    picture = report.picture(
        feynman.draw(chosen, labels=["df"] * 4, columns=5),
        name="diagrams",
        alt="Ten double-line diagrams of four tensors, from two separate rings at order 1 to "
        "twisted ones at order 1/n squared.",
        caption="Each loop of a hidden layer's colour is a factor n; the number before it counts "
        "the ways to place the two contractions, and diagrams that differ by a relabelling.",
        wide=True,
    )
    text = (
        "All diagrams of the mean of the squared NTK of a linear network with two hidden layers. "
        f"Together they are {polynomial}. The first is the only one that falls apart: the square "
        "of the mean."
    )
    return report.Section("Diagrams of the squared kernel", text, (), [picture])


def _dynamics(training: wide.Training) -> report.Section:
    final = {
        "kernel, order 0": training.moved,
        "kernel, order 1": training.theta_error,
        "outputs, order 0": training.order0,
        "outputs, order 1": training.order1,
    }
    errors = {name: (training.widths, np.median(a[:, :, -1], axis=1)) for name, a in final.items()}
    middle = len(training.widths) // 2
    entry = training.entry[middle, 0]
    start = np.full(len(wide.TIMES), entry[0, 0])
    entries = {
        "gradient flow": (wide.TIMES, entry[:, 0]),
        "order 1": (wide.TIMES, entry[:, 1]),
        "order 0": (wide.TIMES, start),
    }
    pictures = [
        report.picture(
            report.curves(entries, xlabel="time", ylabel="entry of the kernel"),
            name="kernel_over_time",
            alt="An entry of the kernel over time: the first order lies on gradient flow, the "
            "constant kernel does not.",
            caption=f"An entry of the kernel of one network of width {training.widths[middle]}.",
        ),
        report.picture(
            report.curves(errors, xlabel="width", ylabel="distance from training", log_x=True,
                          log_y=True),
            name="expansion_errors",
            alt="Distance of kernel and outputs from gradient flow over width: order 0 falls as "
            "1/n, order 1 faster.",
            caption=f"Median over {training.moved.shape[1]} networks a width, at time "
            f"{wide.TIMES[-1]:g}.",
        ),
    ]  # fmt: skip
    numbers = [
        report.number(f"slope of {name}", _slope(training, a).value, "Exponent of the width of the "
                      "median distance from gradient flow.")
        for name, a in final.items()
    ]  # fmt: skip
    text = (
        "Two hidden layers of tanh on four points. The expansion takes O_2, O_3 and O_4 of the "
        "network at its start and says kernel and outputs at every later time."
    )
    return report.Section("Training to order 1/n", text, numbers, pictures)
