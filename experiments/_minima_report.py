"""What the population of minima says: sections and pictures of `relative_flatness`."""

from functools import partial
from typing import Any

import jax
import numpy as np

from experiments import _minima as minima
from experiments import _program
from experiments._minima_claims import FLATNESS, Results, claims_of, tau_of, tau_text
from poster_jax import curvature
from poster_jax.core import report
from poster_jax.core.claims import format_number, kendall_correlation

GAP = "test − training loss (nats)"


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
    tau = tau_of(kept, num_resamples=run.settings.num_resamples, seed=run.seed)
    params = jax.tree.map(lambda leaf: leaf[results.trained["reached"]], params)
    lead = (
        f"{len(results.rows)} networks ({run.settings.network} on {run.settings.dataset}) were "
        f"trained to a training loss below {run.settings.loss_below}; each was measured, rescaled "
        "without changing its function, and measured again."
    )
    dropped = len(results.rows) - len(kept.rows)
    claims = claims_of(kept, tau, dropped=dropped, seed=run.seed)
    sections = [
        _networks(results, kept),
        _correlations(run, kept, tau),
        _rescalings(kept),
        _spectra(run, task, examples, params, kept),
    ]
    return _program.Findings("Relative flatness", lead, claims, sections)


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
        report.Number("τ, all networks", tau_text(whole), "Kendall's τ of relative flatness with "
                      "the gap: 1 when they order the networks alike, 0 when they have nothing in "
                      "common; with a 95 % bootstrap interval."),
        report.Number("p-value", format_number(whole.p_value), "Share of random pairings of the "
                      "two columns that reach such a τ in size."),
    ]  # fmt: skip
    if len(set(setting)) > 2:
        grouped = kendall(values, kept.gap, groups=setting)
        numbers.append(
            report.Number("τ, settings drawn whole", tau_text(grouped), "The same with an interval "
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
                report.Number(f"τ, {label} only", tau_text(within), "Label noise moves the gap by "
                              "itself; within one kind of labels it cannot make the relation.")
            )  # fmt: skip
    panels = {
        when: [
            report.Panel(name, measured[name], kept.gap, f"τ {tau_text(tau[when][name])}", True)
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
    measures = minima.FOLLOWED
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


def _triple(found: Any) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high
