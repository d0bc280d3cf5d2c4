"""The claims of `feature_diversity`: rules fixed before the measurement, intervals over seeds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments import _diversity as shallow
from poster_jax.core.claims import (
    Claim,
    bootstrap_interval,
    format_number,
    paired_difference,
)
from poster_jax.feature_diversity import num_averaging

POSTER = "feature_diversity"
TIED = shallow.TIED
LINEAR_BELOW = 1e-2  # noise that is itself the deviation which counts as broken


class Results(NamedTuple):
    """Everything that was measured; leading axes: seeds, then conditions or patterns.

    Attributes:
      shallow: "grid" (seeds, conditions, ...), "rounded" and "exact" (seeds, ...).
      const: source of noise -> (seeds, ...); "exact" is the reduction.
      leaky: (patterns, seeds, ...).
    """

    shallow: dict[str, Any]
    const: dict[str, Any]
    leaky: dict[str, Any]


class Law(NamedTuple):
    """How the time to break the symmetry goes with the noise.

    Attributes:
      noises: those that are small and whose networks all broke it.
      measured: (seeds, noises) steps.
      predicted: (seeds, noises) steps, from the noiseless path alone.
      fastest: (seeds, noises) the same if all went along the fastest direction, a lower bound.
      per_decade: (seeds,) measured steps that a decade of noise costs.
      predicted_per_decade: (seeds,) the same, predicted.
      r_squared: of the straight line through the means over seeds; NaN for fewer than 3 noises.
    """

    noises: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray
    fastest: np.ndarray
    per_decade: np.ndarray
    predicted_per_decade: np.ndarray
    r_squared: float


def column(settings: Any, results: Results, name: str, mode: str, u: int, noise: float) -> Any:
    """One quantity of one condition, (seeds, ...)."""
    row = shallow.conditions(settings).index(shallow.Condition(mode, u, noise))
    return results.shallow["grid"][name][:, row]


def noise_column(settings: Any, results: Results, name: str, mode: str = TIED[0]) -> Any:
    """One quantity of the noisy conditions of a mode, (seeds, noises, ...)."""
    rows = shallow.conditions(settings)
    first = rows.index(shallow.Condition(mode, 1, settings.noises[0]))
    return results.shallow["grid"][name][:, first : first + len(settings.noises)]


def law_of(settings: Any, results: Results) -> Law:
    """Measured and predicted times, and the line through them."""
    noises = np.array(settings.noises)
    measured = shallow.measured_times(settings, noise_column(settings, results, "diversity"))
    exact = results.shallow["exact"]
    predicted = shallow.predicted_times(settings, exact, exact["probe"])
    fastest = shallow.fastest_times(settings, exact)
    kept = (noises < LINEAR_BELOW) & np.isfinite(measured).all(0) & np.isfinite(predicted).all(0)
    noises, measured, predicted = noises[kept], measured[:, kept], predicted[:, kept]
    fastest = fastest[:, kept]
    if kept.sum() < 3:
        nothing = np.full(len(measured), np.nan)
        return Law(noises, measured, predicted, fastest, nothing, nothing, np.nan)
    decades = np.log10(noises)
    slopes = [-np.polyfit(decades, times.T, 1)[0] for times in (measured, predicted)]
    mean = measured.mean(0)
    rest = mean - np.polyval(np.polyfit(decades, mean, 1), decades)
    r_squared = 1 - np.sum(rest**2) / np.sum((mean - mean.mean()) ** 2)
    return Law(noises, measured, predicted, fastest, *slopes, float(r_squared))


def claims_of(settings: Any, results: Results, *, seed: int) -> list[Claim]:
    """In the order of the poster."""
    const = {name: 100 * found["accuracy"] for name, found in results.const.items()}
    width = max(settings.num_unique)

    def accuracy(mode: str, u: int) -> Any:
        return 100 * column(settings, results, "accuracy", mode, u, 0.0)

    full, tied = accuracy(TIED[0], width), accuracy(TIED[0], 1)
    free = accuracy("independent", width) - accuracy("independent", 1)
    copied = accuracy("duplicated", width) - accuracy("duplicated", 1)
    rounded = 100 * results.shallow["rounded"]["accuracy"]
    sources = ", ".join(f"{name} {_mean(const[name] - const['random'])}" for name in
                        ("weights", "rounding", "none"))  # fmt: skip
    leak = results.const["none"]["leak"]
    law = law_of(settings, results)
    return [
        _difference(
            full,
            tied,
            seed,
            name="C1",
            claim="In a shallow network a complete lack of feature diversity harms training.",
            paper="harmful (abstract)",
            rule="u = n is at least 10 points better than u = 1, readers starting at 0, and the "
            "interval excludes 0",
            decide=lambda mean, low, high: mean >= 10 and low > 0,
            control=f"with duplicated readers the difference is {_mean(copied)} points, with "
            f"independent ones {_mean(free)}",
        ),
        _noise_claim(settings, results, law, full),
        _difference(
            rounded,
            full,
            seed,
            name="C2 (rounding)",
            claim="The noise of arithmetic alone counteracts the lack of diversity.",
            paper="suffices (abstract: non-deterministic GPU sums)",
            rule="one kind of features with rounding noise is at most 1 point worse than u = n in "
            "the mean",
            decide=lambda mean, low, high: mean >= -1,
            control=f"without any noise (width 1, exact) the difference is "
            f"{_mean(100 * results.shallow['exact']['accuracy'] - full)} points",
        ),
        _law_claim(law, seed),
        _difference(
            const["dropout"],
            const["random"],
            seed,
            name="C3",
            claim="ConstNet, whose features start identical, trains as well as from a random "
            "start, given a little noise (here dropout).",
            paper="matching accuracy (abstract)",
            rule="the interval of the difference contains or exceeds -1 point",
            decide=lambda mean, low, high: high >= -1,
            control=f"the same difference with other noise: {sources}",
        ),
        _difference(
            const["dropout"],
            const["exact"],
            seed,
            name="C4",
            claim="Breaking the symmetry is essential: ConstNet without any noise fails.",
            paper="deterministic fails, deterministic with dropout succeeds",
            rule="with dropout at least 10 points better than the exactly symmetric network, and "
            "the interval excludes 0",
            decide=lambda mean, low, high: mean >= 10 and low > 0,
            control=f"the full network without noise leaks by rounding: copies differ by "
            f"{format_number(leak.min())} to {format_number(leak.max())} of their size at the end, "
            f"and it is {_mean(const['dropout'] - const['none'])} points below dropout",
        ),
        _leaky_claim(settings, results, seed),
    ]


def _difference(
    better: Any, worse: Any, seed: int, *, decide: Callable[..., Any], control: str, **texts: Any
) -> Claim:
    found = paired_difference(better, worse, seed=seed).interval
    ends = (found.low, found.high)
    spread = np.std(np.asarray(better) - worse, ddof=1) / len(better) ** 0.5
    return Claim(
        poster=POSTER,
        measured=found.estimate,
        unit="points of test accuracy",
        interval=None if np.isnan(ends).any() else ends,
        interval_of=f"95 % bootstrap over {found.num_samples} seeds, paired",
        holds=bool(decide(found.estimate, *ends)),
        control=f"{control}; a true difference of {format_number(2.8 * spread, digits=2)} points "
        "would be told from 0 in 4 of 5 repetitions",
        num_samples=found.num_samples,
        num_seeds=found.num_samples,
        num_nonfinite=found.num_nonfinite,
        **texts,
    )


def _noise_claim(settings: Any, results: Results, law: Law, full: Any) -> Claim:
    noises, found = np.array(settings.noises), 100 * noise_column(settings, results, "accuracy")
    copied = 100 * noise_column(settings, results, "accuracy", "duplicated")
    enough = noises[found.mean(0) >= full.mean() - 1]
    each = [noises[row >= of - 1].min(initial=np.inf) for row, of in zip(found, full, strict=True)]
    smallest = float(enough.min()) if enough.size else np.nan
    lost = int(np.sum(~np.isfinite(found)))
    return Claim(
        poster=POSTER,
        name="C2",
        claim="A little noise in the weights counteracts the lack of diversity, after a time that "
        "is linear in the logarithm of the noise.",
        paper="a relatively small addition of noise (abstract)",
        measured=smallest,
        unit="s², the smallest share of noise within 1 point of u = n",
        interval=(min(each), max(each)) if np.isfinite(each).all() else None,
        interval_of=f"smallest and largest of {len(each)} seeds by themselves",
        rule="at most 1e-4, and the line through the times has R² above 0.95",
        holds=bool(smallest <= 1e-4 and law.r_squared > 0.95),
        control=f"R² {format_number(law.r_squared)} over {len(law.noises)} noises; without noise "
        f"the network of width 1 has {_mean(100 * results.shallow['exact']['accuracy'])} %; with "
        f"duplicated readers and s² {noises[0]:g} {_mean(copied[:, 0])} % "
        f"(worst seed {format_number(copied[:, 0].min())} %)",
        num_samples=found.size,
        num_seeds=len(found),
        num_nonfinite=lost,
    )


def _law_claim(law: Law, seed: int) -> Claim:
    ratio = law.predicted_per_decade / law.per_decade
    found = bootstrap_interval(ratio, seed=seed)
    late = law.predicted - law.measured
    return Claim(
        poster=POSTER,
        name="C2 (law)",
        claim="How many steps a decade of noise costs follows from the gradients along the "
        "noiseless path, to first order in the noise.",
        paper="none; derived here",
        measured=found.estimate,
        unit="predicted / measured steps a decade",
        interval=None if np.isnan(found.low) else (found.low, found.high),
        interval_of=f"95 % bootstrap over {found.num_samples} seeds",
        rule="the mean ratio lies within 10 % of 1",
        holds=bool(abs(found.estimate - 1) <= 0.1),
        control=f"measured {_mean(law.per_decade)} steps a decade; the predicted times themselves "
        f"are off by {_mean(late) if late.size else 'nan'} steps, nothing fitted; along "
        f"the fastest direction {_mean(law.fastest) if late.size else 'nan'} steps would be enough "
        f"where {_mean(law.measured) if late.size else 'nan'} were needed",
        num_samples=found.num_samples,
        num_seeds=found.num_samples,
        num_nonfinite=found.num_nonfinite,
    )


def _leaky_claim(settings: Any, results: Results, seed: int) -> Claim:
    constant = [i for i, pattern in enumerate(settings.patterns) if "h" not in pattern]
    counts = np.array([num_averaging(settings.patterns[i]) for i in constant])
    found = results.leaky["accuracy"][constant]
    # Within each seed: its networks share what varies from seed to seed.
    each = [scipy.stats.kendalltau(counts, row).statistic for row in found.T]
    tau = bootstrap_interval(each, seed=seed)
    means = ", ".join(
        f"{settings.patterns[i]} {format_number(100 * row.mean())}"
        for i, row in zip(constant, found, strict=True)
    )
    return Claim(
        poster=POSTER,
        name="C4 (LeakyNet)",
        claim="The more layers erase diversity at the start, the worse the network trains.",
        paper="hindering hurts (abstract)",
        measured=tau.estimate,
        unit="Kendall's τ of averaging layers with test accuracy",
        interval=None if np.isnan(tau.low) else (tau.low, tau.high),
        interval_of=f"95 % bootstrap over {tau.num_samples} seeds",
        rule="the upper end of the interval is below 0",
        holds=bool(tau.high < 0),
        control=f"mean accuracy in %: {means}",
        num_samples=found.size,
        num_seeds=found.shape[1],
        num_nonfinite=tau.num_nonfinite,
    )


def _mean(values: Any) -> str:
    return format_number(np.mean(values))
