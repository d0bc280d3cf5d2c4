"""What the population of minima says: claims, sections and pictures of `relative_flatness`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _minima as minima
from experiments import _program
from poster_jax import curvature
from poster_jax.core import report
from poster_jax.core.claims import (
    Claim,
    Correlation,
    format_number,
    kendall_correlation,
    pearson_correlation,
    spread_interval,
)

FLATNESS, TRACE, NORM = minima.MEASURES[0], minima.MEASURES[2], minima.MEASURES[4]
GAP = "test − training loss (nats)"


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


def findings(
    run: _program.Run, task: minima.Task, examples: Any, params: Any, results: Results
) -> _program.Findings:
    """Claims and sections."""
    for index, row in enumerate(results.rows):
        parts = (results.trained, results.quality, results.before)
        values = {name: part[name][index] for part in parts for name in part}
        after = {f"{name}, rescaled": value[index] for name, value in results.after.items()}
        run.log(network=index, **row, **values, **after)
    kept = results.kept()
    if len(kept.rows) < 3:
        raise _program.RefusedError(
            f"{len(kept.rows)} of {len(results.rows)} networks reached a training loss below "
            f"{run.settings.loss_below}; 3 are needed. Give more --max_epochs."
        )
    kendall = partial(kendall_correlation, num_resamples=run.settings.num_resamples, seed=run.seed)
    tau = {
        when: {name: kendall(values[name], kept.gap) for name in minima.MEASURES}
        for when, values in (("before", kept.before), ("after", kept.after))
    }
    params = jax.tree.map(lambda leaf: leaf[results.trained["reached"]], params)
    lead = (
        f"{len(results.rows)} networks ({run.settings.network} on {run.settings.dataset}) were "
        f"trained to a training loss below {run.settings.loss_below}; each was measured, rescaled "
        "without changing its function, and measured again."
    )
    dropped = len(results.rows) - len(kept.rows)
    claims = [
        *_invariance_claims(kept, dropped),
        *_correlation_claims(run, kept, dropped, tau),
        _ridge_claim(kept),
    ]
    sections = [
        _networks(results, kept),
        _correlations(run, kept, tau),
        _rescalings(kept),
        _spectra(run, task, examples, params, kept),
    ]
    return _program.Findings("Relative flatness", lead, claims, sections)


def _invariance_claims(kept: Results, dropped: int) -> list[Claim]:
    claims = []
    for bits, bound in ((32, 1e-3), (64, 1e-8)):
        layers = kept.changes[bits].values()
        worst = np.max([layer["relative flatness"] - 1 for layer in layers], axis=(0, 2))
        found = spread_interval(worst)
        trace, norm = (np.median([layer[name] for layer in layers]) for name in ("Tr H", "|W|²"))
        moved = bool(min(trace, norm) > 10)
        claims.append(
            Claim(
                poster="relative_flatness",
                name=f"C1 (float{bits})",
                claim="Rescalings that keep the function leave relative flatness as it is, and "
                "change the trace of the Hessian and the weight norm.",
                paper="exact, to rounding",
                measured=found.estimate,
                unit="relative change, the largest found",
                interval=(found.low, found.high),
                interval_of="central 95 % of the networks' largest changes",
                rule=f"the largest change is below {bound:g}, while trace and norm change by more "
                "than 10 times in the median",
                holds=bool(found.estimate < bound) and moved,
                control=f"the trace changes {format_number(trace)} times in the median, the "
                f"squared norm of the layer {format_number(norm)} times",
                num_samples=found.num_samples,
                num_seeds=len(set(kept.column("seed"))),
                num_nonfinite=found.num_nonfinite + dropped,
            )
        )
    return claims


def _correlation_claims(
    run: _program.Run, kept: Results, dropped: int, tau: dict[str, dict[str, Correlation]]
) -> list[Claim]:
    shared = {
        "poster": "relative_flatness",
        "unit": "Kendall's τ",
        "interval_of": f"95 % bootstrap over {len(kept.rows)} networks",
        "num_samples": len(kept.rows),
        "num_seeds": len(set(kept.column("seed"))),
    }
    first, last = tau["before"][FLATNESS], tau["after"][FLATNESS]
    pearson = pearson_correlation(kept.before[FLATNESS], kept.gap, seed=run.seed)
    lost = {
        name: tau["after"][name].low <= 0 <= tau["after"][name].high
        and abs(tau["after"][name].estimate) < abs(tau["before"][name].estimate)
        for name in (TRACE, NORM)
    }
    control = "; ".join(
        f"{name}: {_tau(tau['before'][name])} before, {_tau(tau['after'][name])} after"
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
            f"populations; Pearson {_tau(pearson)}",
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


def _networks(results: Results, kept: Results) -> report.Section:
    reached, all_of_them = len(kept.rows), len(results.rows)
    share = kept.quality["test accuracy"]
    low, high = np.quantile(kept.gap, [0.05, 0.95])
    numbers = [
        report.number("networks measured", reached, f"Of {all_of_them} trained; the others missed "
                      "the training loss in time and were dropped before anything was measured."),
        report.number("diverged", np.sum(results.trained["diverged"]), "Networks whose loss was "
                      "no longer finite; they are among the dropped."),
        report.number("median test accuracy", np.median(share), "Share of the test examples that "
                      "the middle network names right."),
        report.number("gap, 5 % and 95 %", high - low, f"The gap between test and training loss "
                      f"spreads from {format_number(low)} to {format_number(high)} nats over the "
                      "middle nine tenths of the networks.", unit="nats apart"),
        report.number("accuracy gap, median",
                      np.median(kept.quality["train accuracy"] - share),
                      "Training accuracy (of the labels trained on) minus test accuracy."),
    ]  # fmt: skip
    text = (
        "All networks stop at the same training loss, so that what differs between them is where "
        "they stopped. They differ in batch size, learning rate, optimiser, weight decay and seed; "
        "where label noise is on, every second network was trained with some labels wrong."
    )
    return report.Section("The networks", text, numbers)


def _correlations(run: _program.Run, kept: Results, tau: Any) -> report.Section:
    kendall = partial(kendall_correlation, num_resamples=run.settings.num_resamples, seed=run.seed)
    values, setting = kept.before[FLATNESS], kept.column("setting")
    whole = tau["before"][FLATNESS]
    numbers = [
        report.Number("τ, all networks", _tau(whole), "Kendall's τ of relative flatness with the "
                      "gap: 1 when they order the networks alike, 0 when they have nothing in "
                      "common; with a 95 % bootstrap interval."),
        report.Number("p-value", format_number(whole.p_value), "Share of random pairings of the "
                      "two columns that reach such a τ in size."),
    ]  # fmt: skip
    if len(set(setting)) > 2:
        grouped = kendall(values, kept.gap, groups=setting)
        numbers.append(
            report.Number("τ, settings drawn whole", _tau(grouped), "The same with an interval "
                          "over settings instead of networks: seeds of one setting are no "
                          "independent witnesses.")
        )  # fmt: skip
    noisy = kept.column("noisy")
    labels = np.where(noisy == 1, "noisy labels", "true labels")
    for label in np.unique(labels):
        here = labels == label
        if 3 <= here.sum() < here.size:
            within = kendall(values[here], kept.gap[here])
            numbers.append(
                report.Number(f"τ, {label} only", _tau(within), "Label noise moves the gap by "
                              "itself; within one kind of labels it cannot make the relation.")
            )  # fmt: skip
    panels = {
        when: [
            report.Panel(name, measured[name], kept.gap, f"τ {_tau(tau[when][name])}", True)
            for name in minima.MEASURES
            if "normalised" not in name
        ]
        for when, measured in (("before", kept.before), ("after", kept.after))
    }
    words = {
        "before": "The networks as they were trained: the gap against each measure of the last "
        "layer (norms: of all layers). τ with its 95 % interval stands above.",
        "after": "The same networks, the last layer multiplied by a random factor of 5 to 25 and "
        "the layer before divided by it: same functions, same gaps, other measures.",
    }
    pictures = [
        report.picture(
            report.scatter_panels(panels[when], ylabel=GAP, groups=labels, columns=3),
            name=f"gap_{when}_rescaling",
            alt=f"Six scatter plots, {when} rescaling: generalisation gap against each measure; "
            + "; ".join(f"{p.title}: {p.note}" for p in panels[when]),
            caption=words[when],
            wide=True,
        )
        for when in panels
    ]
    intervals = {
        f"{when} rescaling": {name: _triple(found) for name, found in tau[when].items()}
        for when in tau
    }
    pictures.append(
        report.picture(
            report.interval_plot(intervals, xlabel="Kendall's τ with the generalisation gap"),
            name="correlations",
            alt="Kendall's τ of every measure with the gap, before and after rescaling, with 95 % "
            "intervals; the numbers are those above the scatter plots.",
            caption="A measure that a rescaling cannot fool has both marks at one height and "
            "place. Intervals: 95 %, bootstrap over networks.",
        )
    )
    text = (
        "Each point is one network. The gap does not change under a rescaling, as the function "
        "does not; a measure that does change cannot explain it."
    )
    return report.Section("Does flatness go with the gap?", text, numbers, pictures)


def _rescalings(kept: Results) -> report.Section:
    layers = {name.removesuffix("/kernel"): found for name, found in kept.changes[32].items()}
    measures = list(next(iter(layers.values())))
    change = np.array([[np.median(found[m]) - 1 for m in measures] for found in layers.values()])
    rounding = np.finfo(np.float32).eps
    figure = report.heat_map(
        np.maximum(change, rounding),
        rows=list(layers),
        columns=measures,
        label="median relative change",
        log=True,
    )
    num = next(iter(layers.values()))[measures[0]].shape[1]
    numbers = [
        report.number(f"{measure}, largest change", max(found[measure].max() for found in
                      layers.values()) - 1, f"The largest relative change of this measure over "
                      f"{len(kept.rows)} networks, {num} rescalings and {len(layers)} layers.")
        for measure in measures
    ]  # fmt: skip
    picture = report.picture(
        figure,
        name="change_under_rescaling",
        alt="Heat map, layers by measures: relative flatness, its column-wise form and the 2019 "
        "measure change by rounding only; the trace and the squared norm by hundreds of times.",
        caption=f"Median relative change under {num} random rescalings of all layers (factors from "
        "0.001 to 1000, product 1), in float32. The first three are exact invariants; what is left "
        "is rounding.",
        wide=True,
    )
    text = (
        "A ReLU network computes the same function when one layer is multiplied by a factor and "
        "another divided by it. Every layer's Hessian then changes by the square of the factor."
    )
    return report.Section("What a rescaling does to each layer", text, numbers, [picture])


def _spectra(
    run: _program.Run, task: minima.Task, examples: Any, params: Any, kept: Results
) -> report.Section:
    values = np.where(kept.column("noisy") == 0, kept.before[FLATNESS], np.nan)
    batch = examples.train(0)
    densities, tops, numbers = {}, {}, []
    for name, index in (("sharp", np.nanargmax(values)), ("flat", np.nanargmin(values))):
        one = jax.tree.map(lambda leaf: leaf[int(index)], params)  # noqa: B023
        op = curvature.hessian_operator(task.loss_fn, one, batch, microbatch=task.microbatch)
        steps = min(run.settings.num_lanczos, op.dim)
        density = curvature.spectral_density(op, run.key, num_lanczos=steps, num_probes=2)
        pairs = curvature.top_eigenpairs(op, run.key, k=min(10, op.dim), tol=1e-3)
        densities[name], tops[name] = (density.grid, density.density), pairs.values
        row = kept.rows[index]
        numbers += [
            report.number(f"{name} minimum, relative flatness", values[index], "Of the last layer: "
                          f"{row['optimiser']}, batch {row['batch_size']}, rate {row['rate']:g}."),
            report.number(f"{name} minimum, largest eigenvalue", pairs.values[0], "The curvature "
                          "of the training loss along its steepest direction, with the norm of "
                          "its residual.", stderr=pairs.residuals[0]),
            report.number(f"{name} minimum, gap", kept.gap[index], "Its test loss minus its "
                          "training loss.", unit="nats"),
        ]  # fmt: skip
    picture = report.picture(
        report.spectra(densities, outliers=tops, xlabel="eigenvalue of the Hessian"),
        name="hessian_density",
        alt="Densities of the Hessian's eigenvalues of a sharp and a flat minimum, each with a "
        "peak at zero and its ten largest eigenvalues marked.",
        caption="Density of the eigenvalues of the whole network's Hessian on the training set "
        "(stochastic Lanczos quadrature), with the ten largest marked: most directions are flat, a "
        "few are steep.",
    )
    text = (
        "The networks with the largest and the smallest relative flatness among those trained on "
        "true labels."
    )
    return report.Section("A sharp and a flat minimum", text, numbers, [picture])


def _ends(found: Correlation) -> tuple[float, float] | None:
    return None if np.isnan(found.low) else (found.low, found.high)


def _triple(found: Correlation) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high


def _tau(found: Correlation) -> str:
    ends = (format_number(end, digits=2) for end in (found.low, found.high))
    return f"{format_number(found.estimate, digits=2)} [{', '.join(ends)}]"
