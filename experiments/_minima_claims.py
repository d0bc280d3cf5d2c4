"""The claims C1 to C4 of `relative_flatness`, each with the rule written before the measurement."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _minima as minima
from poster_jax.core.claims import (
    Claim,
    Correlation,
    format_number,
    kendall_correlation,
    pearson_correlation,
    spread_interval,
)

FLATNESS, TRACE, NORM = minima.MEASURES[0], minima.MEASURES[2], minima.MEASURES[4]


class Results(NamedTuple):
    """The numbers of a run, one entry a network.

    Attributes:
      rows: settings.
      trained: reached, diverged, epochs.
      quality: losses and accuracies.
      measured: measure -> (networks, 2): as trained, and with the last two layers rescaled by 5 to
        25.
      changes: bits -> layer -> measure -> (networks, rescalings), factors of change of at least 1.
      ridge: relative differences of claim C4.
    """

    rows: list[dict[str, Any]]
    trained: dict[str, Any]
    quality: dict[str, Any]
    measured: dict[str, Any]
    changes: dict[int, Any]
    ridge: Any

    @property
    def gap(self) -> Any:
        """Test loss minus training loss."""
        return self.quality["test loss"] - self.quality["train loss"]

    @property
    def before(self) -> dict[str, Any]:
        """Measures of the networks as trained."""
        return {name: values[:, 0] for name, values in self.measured.items()}

    @property
    def after(self) -> dict[str, Any]:
        """Measures of the rescaled networks."""
        return {name: values[:, 1] for name, values in self.measured.items()}

    def kept(self) -> "Results":
        """The networks that met the criterion."""
        keep = self.trained["reached"]
        rows = [row for row, kept in zip(self.rows, keep, strict=True) if kept]
        pick = partial(jax.tree.map, lambda leaf: leaf[keep])
        return Results(rows, *map(pick, self[1:-1]), self.ridge)

    def column(self, name: str) -> Any:
        """A setting of every network."""
        return np.array([row[name] for row in self.rows])


def claims_of(
    kept: Results, tau: dict[str, dict[str, Correlation]], *, dropped: int, seed: int
) -> list[Claim]:
    """All claims, of the networks that met the criterion."""
    return [
        *(
            _invariance_claim(kept, bits, bound, dropped)
            for bits, bound in ((32, 1e-3), (64, 1e-8))
        ),
        *_correlation_claims(kept, tau, dropped, seed),
        _ridge_claim(kept),
    ]


def tau_of(kept: Results, **options: Any) -> dict[str, dict[str, Correlation]]:
    """Kendall's tau of every measure with the gap, before and after rescaling."""
    return {
        when: {name: kendall_correlation(v, kept.gap, **options) for name, v in measured.items()}
        for when, measured in (("before", kept.before), ("after", kept.after))
    }


def tau_text(found: Correlation) -> str:
    """The coefficient with its interval."""
    ends = (format_number(end, digits=2) for end in (found.low, found.high))
    return f"{format_number(found.estimate, digits=2)} [{', '.join(ends)}]"


def _invariance_claim(kept: Results, bits: int, bound: float, dropped: int) -> Claim:
    layers = kept.changes[bits].values()
    worst = np.max([layer["relative flatness"] - 1 for layer in layers], axis=(0, 2))
    found = spread_interval(worst)
    trace, norm = (np.median([layer[name] for layer in layers]) for name in ("Tr H", "|W|²"))
    return Claim(
        poster="relative_flatness",
        name=f"C1 (float{bits})",
        claim="Rescalings that keep the function leave relative flatness as it is, and change the "
        "trace of the Hessian and the weight norm.",
        paper="exact, to rounding",
        measured=found.estimate,
        unit="relative change, the largest found",
        interval=(found.low, found.high),
        interval_of="central 95 % of the networks' largest changes",
        rule=f"the largest change is below {bound:g}, while trace and norm change by more than 10 "
        "times in the median",
        holds=bool(found.estimate < bound and min(trace, norm) > 10),
        control=f"the trace changes {format_number(trace)} times in the median, the squared norm "
        f"of the layer {format_number(norm)} times",
        num_samples=found.num_samples,
        num_seeds=len(set(kept.column("seed"))),
        num_nonfinite=found.num_nonfinite + dropped,
    )


def _correlation_claims(
    kept: Results, tau: dict[str, dict[str, Correlation]], dropped: int, seed: int
) -> list[Claim]:
    shared = {
        "poster": "relative_flatness",
        "unit": "Kendall's τ",
        "interval_of": f"95 % bootstrap over {len(kept.rows)} networks",
        "num_samples": len(kept.rows),
        "num_seeds": len(set(kept.column("seed"))),
    }
    first, last = tau["before"][FLATNESS], tau["after"][FLATNESS]
    pearson = pearson_correlation(kept.before[FLATNESS], kept.gap, seed=seed)
    lost = {
        name: tau["after"][name].low <= 0 <= tau["after"][name].high
        and abs(tau["after"][name].estimate) < abs(tau["before"][name].estimate)
        for name in (TRACE, NORM)
    }
    control = "; ".join(
        f"{name}: {tau_text(tau['before'][name])} before, {tau_text(tau['after'][name])} after"
        for name in lost
    )
    return [
        Claim(
            **shared,
            name="C2",
            claim="Over many minima, the larger relative flatness, the larger the generalisation "
            "gap.",
            paper="strong and positive; LeNet5 on CIFAR-10, Pearson about 0.9 in the 2021 figure",
            measured=first.estimate,
            interval=_ends(first),
            rule="the lower end of the interval is above 0",
            holds=bool(first.low > 0),
            control=f"chance alone stays below {format_number(first.chance)} in 97.5 % of random "
            f"pairings; a true τ of {format_number(first.detectable)} would be found in 4 of 5 "
            f"populations; Pearson {tau_text(pearson)}",
            num_nonfinite=first.num_nonfinite + dropped,
        ),
        Claim(
            **shared,
            name="C3",
            claim="After a random rescaling of each minimum, trace and weight norm lose their "
            "correlation with the gap; relative flatness keeps it.",
            paper="relative flatness and Fisher-Rao norm keep theirs, the others lose it",
            measured=last.estimate,
            interval=_ends(last),
            rule="the interval of relative flatness stays above 0; those of trace and weight norm "
            "fall and include 0",
            holds=bool(last.low > 0 and all(lost.values())),
            control=control,
            num_nonfinite=last.num_nonfinite + dropped,
        ),
    ]


def _ends(found: Correlation) -> tuple[float, float] | None:
    return None if np.isnan(found.low) else (found.low, found.high)


def _ridge_claim(kept: Results) -> Claim:
    found = spread_interval(kept.ridge)
    return Claim(
        poster="relative_flatness",
        name="C4",
        claim="For least squares relative flatness is the ridge penalty: a constant times |W|².",
        paper="identity (2021)",
        measured=found.estimate,
        unit="relative difference, the largest found",
        interval=(found.low, found.high),
        interval_of=f"central 95 % of {found.num_samples} random weights",
        rule="the largest difference is below 1e-5, rounding of float32 over all examples",
        holds=bool(found.estimate < 1e-5),
        num_samples=found.num_samples,
        num_seeds=found.num_samples,
        num_nonfinite=found.num_nonfinite,
    )
